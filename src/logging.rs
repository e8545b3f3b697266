//! Where log lines go, and how they look: what an `<eventlog>` section asks for, done by
//! `env_logger`.
//!
//! The library only calls `log`; this module is for binaries. It takes the time of a line from the
//! clock of the system, as local time, which is what Python's logging does.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use env_logger::Target;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use log::{Level, LevelFilter, Log, Metadata, Record};

/// Where log lines go; each output gets them all, as far as its level lets them through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// At least one.
    pub outputs: Vec<LogOutput>,
}

/// One place that log lines go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOutput {
    /// The place.
    pub target: LogTarget,
    /// The least severe level that is written. `RUST_LOG` has the last word.
    pub level: LevelFilter,
    /// How a line looks.
    pub format: LineFormat,
    /// How the time in it looks.
    pub dates: DateFormat,
}

/// A stream or file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, which is appended to, and created if there is none.
    File {
        /// Its name.
        path: PathBuf,
        /// Whether it is kept short.
        rotation: Option<Rotation>,
    },
}

/// How a file is kept short: as by Python's `RotatingFileHandler`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// A line after which the file would have as many bytes, or more, begins a new one.
    pub len_max: u64,
    /// So many old ones are kept, under the name with `.1` (the youngest), `.2` and so on.
    pub old_count: u32,
}

impl LogConfig {
    /// What holds if nothing is configured. There is one line to an entry, as whoever reads
    /// standard error (a terminal, the journal) needs no `------` between them.
    pub fn stderr(level: LevelFilter) -> Self {
        let (format, dates) = (LineFormat::after(""), DateFormat::default());
        Self {
            outputs: vec![LogOutput {
                target: LogTarget::Stderr,
                level,
                format,
                dates,
            }],
        }
    }

    /// Lets at least this level through, everywhere.
    pub fn raise_level(&mut self, level: LevelFilter) {
        for output in &mut self.outputs {
            output.level = output.level.max(level);
        }
    }
}

/// Opens the files and begins to log. To be called once in a process.
pub fn install(config: &LogConfig) -> Result<Handle, LogError> {
    let mut loggers = Vec::new();
    let mut files = Vec::new();
    for output in &config.outputs {
        let target = match &output.target {
            LogTarget::Stdout => Target::Stdout,
            LogTarget::Stderr => Target::Stderr,
            LogTarget::File { path, rotation } => {
                let file = Arc::new(LogFile::open(path, *rotation)?);
                files.push(file.clone());
                Target::Pipe(Box::new(LogWriter(file)))
            }
        };
        let (format, dates) = (output.format.clone(), output.dates.clone());
        let logger = env_logger::Builder::new()
            .filter_level(output.level)
            .parse_env("RUST_LOG")
            .target(target)
            .format(move |line, record| format.write(line, record, &dates.write(&Zoned::now())))
            .build();
        loggers.push(logger);
    }
    let most = loggers.iter().map(env_logger::Logger::filter).max();
    log::set_boxed_logger(Box::new(Outputs(loggers))).map_err(|_| LogError::Installed)?;
    log::set_max_level(most.unwrap_or(LevelFilter::Off));
    Ok(Handle { files })
}

/// What is left to do with an installed log.
#[derive(Clone, Debug, Default)]
pub struct Handle {
    files: Vec<Arc<LogFile>>,
}

impl Handle {
    /// Whether there is anything that [`Self::reopen`] reopens.
    pub fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// Opens all log files anew, by their names: they may have been renamed to be kept. A file
    /// that cannot be opened is written on as it was; the first such error is returned.
    pub fn reopen(&self) -> Result<(), LogError> {
        let reopened: Vec<_> = self.files.iter().map(|file| file.reopen()).collect();
        reopened.into_iter().collect()
    }
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    rotation: Option<Rotation>,
    opened: Mutex<Opened>,
}

#[derive(Debug)]
struct Opened {
    file: File,
    /// How long it is, unless others write to it, too.
    len: u64,
}

impl LogFile {
    fn open(path: &Path, rotation: Option<Rotation>) -> Result<Self, LogError> {
        let opened = Mutex::new(open_to_append(path)?);
        Ok(Self {
            path: path.to_owned(),
            rotation,
            opened,
        })
    }

    fn reopen(&self) -> Result<(), LogError> {
        *self.lock() = open_to_append(&self.path)?;
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut opened = self.lock();
        if let Some(rotation) = self.rotation
            && opened.len > 0
            && opened.len + bytes.len() as u64 >= rotation.len_max
            // What cannot be rotated is written on, which is better than no log.
            && let Ok(new) = self.rotate(rotation.old_count)
        {
            *opened = new;
        }
        let written = opened.file.write(bytes)?;
        opened.len += written as u64;
        Ok(written)
    }

    /// Gives the old files their next names, of which the last one loses its own.
    fn rotate(&self, old_count: u32) -> io::Result<Opened> {
        let old = |number: u32| {
            let mut name = OsString::from(&self.path);
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..old_count).rev() {
            match fs::rename(old(number), old(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, old(1))?;
        open_to_append(&self.path).map_err(|error| match error {
            LogError::Open { error, .. } => error,
            LogError::Installed => io::ErrorKind::Other.into(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Opened> {
        // A file is as good after a panic as before.
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_to_append(path: &Path) -> Result<Opened, LogError> {
    let opened = File::options().append(true).create(true).open(path);
    let opened = opened.and_then(|file| {
        let len = file.metadata()?.len();
        Ok(Opened { file, len })
    });
    opened.map_err(|error| LogError::Open {
        path: path.to_owned(),
        error,
    })
}

/// What `env_logger` writes to, while [`Handle`] can exchange the file.
struct LogWriter(Arc<LogFile>);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().file.flush()
    }
}

struct Outputs(Vec<env_logger::Logger>);

impl Log for Outputs {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.iter().any(|output| output.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        for output in &self.0 {
            output.log(record);
        }
    }

    fn flush(&self) {
        for output in &self.0 {
            output.flush();
        }
    }
}

/// A format of Python's logging, in its `%(field)s` style.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineFormat {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Time,
    Level,
    Name,
    Message,
    Process,
    Thread,
}

impl Default for LineFormat {
    /// ZConfig's default for `<logfile>`.
    fn default() -> Self {
        Self::after("------\n")
    }
}

impl LineFormat {
    /// `%(asctime)s %(levelname)s %(name)s %(message)s` with something before it.
    fn after(start: &str) -> Self {
        let text = |text: &str| Piece::Text(text.to_owned());
        let pieces = vec![
            text(start),
            Piece::Time,
            text(" "),
            Piece::Level,
            text(" "),
            Piece::Name,
            text(" "),
            Piece::Message,
        ];
        Self { pieces }
    }

    /// The error says what was expected.
    pub fn parse(format: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "a format made of text, %(asctime)s, %(levelname)s, %(name)s, \
                                %(message)s, %(process)d, %(thread)d and %%";
        let mut format = format.to_owned();
        for (escape, character) in [
            ("\\n", "\n"),
            ("\\t", "\t"),
            ("\\b", "\x08"),
            ("\\f", "\x0c"),
            ("\\r", "\r"),
        ] {
            format = format.replace(escape, character);
        }
        let mut pieces = Vec::new();
        let mut rest = format.as_str();
        while let Some((text, field)) = rest.split_once('%') {
            pieces.push(Piece::Text(text.to_owned()));
            let fields = [
                ("%", Piece::Text("%".to_owned())),
                ("(asctime)s", Piece::Time),
                ("(levelname)s", Piece::Level),
                ("(name)s", Piece::Name),
                ("(message)s", Piece::Message),
                ("(process)d", Piece::Process),
                ("(process)s", Piece::Process),
                ("(thread)d", Piece::Thread),
                ("(thread)s", Piece::Thread),
            ];
            let (piece, after) = fields
                .into_iter()
                .find_map(|(name, piece)| Some((piece, field.strip_prefix(name)?)))
                .ok_or(EXPECTED)?;
            pieces.push(piece);
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        if format.is_empty() {
            Err(EXPECTED)
        } else {
            Ok(Self { pieces })
        }
    }

    /// Writes the entry and the end of its line.
    fn write(&self, line: &mut impl Write, record: &Record<'_>, time: &str) -> io::Result<()> {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => write!(line, "{text}")?,
                Piece::Time => write!(line, "{time}")?,
                Piece::Level => write!(line, "{}", level_name(record.level()))?,
                Piece::Name => write!(line, "{}", record.target())?,
                Piece::Message => write!(line, "{}", record.args())?,
                Piece::Process => write!(line, "{}", process::id())?,
                Piece::Thread => write!(line, "{}", rustix::thread::gettid().as_raw_nonzero())?,
            }
        }
        writeln!(line)
    }
}

/// As Python calls them, for programs that search for these words.
fn level_name(level: Level) -> &'static str {
    match level {
        // An operator must act: runzeo's word for that, which log filters look for.
        Level::Error => "CRITICAL",
        Level::Warn => "WARNING",
        Level::Info => "INFO",
        Level::Debug => "DEBUG",
        Level::Trace => "TRACE",
    }
}

/// A format of `strftime`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DateFormat(String);

impl Default for DateFormat {
    /// ZConfig's default for `<logfile>`.
    fn default() -> Self {
        Self("%Y-%m-%dT%H:%M:%S".to_owned())
    }
}

impl DateFormat {
    /// The error says what was expected.
    pub fn parse(format: &str) -> Result<Self, &'static str> {
        /// Those that mean the same in C, in Python and here, whatever the locale.
        const CODES: &str = "aAbBdeFHIjmMpSTyYzZ%";
        let mut rest = format;
        while let Some((_, after)) = rest.split_once('%') {
            rest = after
                .strip_prefix(|code| CODES.contains(code))
                .ok_or("a date format made of text and of % with one of aAbBdeFHIjmMpSTyYzZ%")?;
        }
        if format.is_empty() {
            Err("a date format")
        } else {
            Ok(Self(format.to_owned()))
        }
    }

    fn write(&self, time: &Zoned) -> String {
        // The codes were checked; if one cannot be written after all, any time is better than none.
        strtime::format(&self.0, time).unwrap_or_else(|_| time.to_string())
    }
}

/// A time in the form of Python's `time.ctime`, in local time.
pub fn local_time_text(time: SystemTime) -> String {
    let time = Timestamp::try_from(time)
        .unwrap_or_default()
        .to_zoned(TimeZone::system());
    DateFormat("%a %b %e %H:%M:%S %Y".to_owned()).write(&time)
}

/// Why there is no log, or not the one that was asked for.
#[derive(Debug)]
pub enum LogError {
    /// A file cannot be created, or written to.
    Open {
        /// Its name.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// There is one already in this process.
    Installed,
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { path, error } => {
                write!(f, "cannot open log file {}: {error}", path.display())
            }
            Self::Installed => write!(f, "logging was begun already"),
        }
    }
}

impl std::error::Error for LogError {}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    /// What a format makes of a message.
    fn line(format: &LineFormat) -> String {
        let mut line = Vec::new();
        let record = Record::builder()
            .args(format_args!("c1: ready"))
            .level(Level::Warn)
            .target("standby::server")
            .build();
        format.write(&mut line, &record, "noon").unwrap();
        String::from_utf8(line).unwrap()
    }

    fn noon() -> Zoned {
        let time = Timestamp::from_second(1_795_222_013).unwrap();
        time.to_zoned(TimeZone::fixed(jiff::tz::offset(1)))
    }

    #[test]
    fn the_default_line_is_that_of_runzeo() {
        let expected = "------\nnoon WARNING standby::server c1: ready\n";
        assert_eq!(line(&LineFormat::default()), expected);
        let text = r"------\n%(asctime)s %(levelname)s %(name)s %(message)s";
        assert_eq!(line(&LineFormat::parse(text).unwrap()), expected);
        assert_eq!(DateFormat::default().write(&noon()), "2026-11-21T01:46:53");
    }

    #[test]
    fn formats_are_made_of_fields_and_text() {
        let parsed = LineFormat::parse(r"100%%\t%(message)s, %(asctime)s").unwrap();
        assert_eq!(line(&parsed), "100%\tc1: ready, noon\n");
        let parsed = LineFormat::parse("%(process)d").unwrap();
        assert_eq!(line(&parsed), format!("{}\n", process::id()));
        let thread = line(&LineFormat::parse("%(thread)d").unwrap());
        assert!(thread.trim_end().parse::<u32>().is_ok(), "{thread}");
        for format in [
            "",
            "%",
            "%s",
            "%(funcName)s",
            "%(levelname)-8s",
            "%(message)",
            "{message}%",
        ] {
            assert!(LineFormat::parse(format).is_err(), "{format}");
        }
    }

    #[test]
    fn dates_are_those_of_strftime() {
        for (format, expected) in [
            ("%d/%b/%Y:%H:%M:%S %z", "21/Nov/2026:01:46:53 +0100"),
            (
                "%y%m%d %I%p %j %a %A %B",
                "261121 01AM 325 Sat Saturday November",
            ),
            ("%F %T %e %%", "2026-11-21 01:46:53 21 %"),
        ] {
            assert_eq!(DateFormat::parse(format).unwrap().write(&noon()), expected);
        }
        for format in ["", "%", "%f", "%c", "%-d", "%é"] {
            assert!(DateFormat::parse(format).is_err(), "{format}");
        }
    }

    #[test]
    fn every_code_that_is_accepted_can_be_written() {
        for code in "aAbBdeFHIjmMpSTyYzZ%".chars() {
            let format = format!("%{code}");
            assert!(strtime::format(&format, &noon()).is_ok(), "{format}");
        }
    }

    #[test]
    fn the_start_is_told_in_the_form_of_ctime() {
        let text = local_time_text(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_222_013));
        // The time zone is that of whoever runs the test.
        assert_eq!(text.len(), "Sat Nov 21 00:46:53 2026".len());
        assert!(text.ends_with("2026"), "{text}");
    }

    #[test]
    fn a_renamed_file_is_written_until_it_is_reopened() {
        let directory = std::env::temp_dir().join(format!("standby-logging-{}", process::id()));
        fs::create_dir(&directory).unwrap();
        let (path, old) = (directory.join("zeo.log"), directory.join("old.log"));
        fs::write(&path, "before\n").unwrap();
        let file = Arc::new(LogFile::open(&path, None).unwrap());
        let mut writer = LogWriter(file.clone());
        let handle = Handle { files: vec![file] };

        writer.write_all(b"one\n").unwrap();
        fs::rename(&path, &old).unwrap();
        writer.write_all(b"two\n").unwrap();
        handle.reopen().unwrap();
        writer.write_all(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "before\none\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");

        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = handle.reopen().unwrap_err().to_string();
        assert!(error.contains("zeo.log"), "{error}");
        writer.write_all(b"still here\n").unwrap();
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_file_is_rotated_before_it_gets_too_long() {
        let name = format!("standby-rotation-{}", process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).unwrap();
        let path = directory.join("zeo.log");
        fs::write(&path, "before\n").unwrap();
        let rotation = Rotation {
            len_max: 12,
            old_count: 2,
        };
        let mut writer = LogWriter(Arc::new(LogFile::open(&path, Some(rotation)).unwrap()));
        let read = |name: &str| fs::read_to_string(directory.join(name)).ok();
        writer.write_all(b"one\n").unwrap();
        assert_eq!(read("zeo.log").unwrap(), "before\none\n");
        for line in ["two\n", "three\n", "a line that is longer\n", "five\n"] {
            writer.write_all(line.as_bytes()).unwrap();
        }
        // Of "before" and "one" nothing is left.
        assert_eq!(read("zeo.log").unwrap(), "five\n");
        assert_eq!(read("zeo.log.1").unwrap(), "a line that is longer\n");
        assert_eq!(read("zeo.log.2").unwrap(), "two\nthree\n");
        assert_eq!(read("zeo.log.3"), None);
        // A directory of that name stays in the way.
        fs::remove_file(directory.join("zeo.log.1")).unwrap();
        fs::create_dir(directory.join("zeo.log.1")).unwrap();
        fs::write(directory.join("zeo.log.1/file"), "").unwrap();
        fs::remove_file(directory.join("zeo.log.2")).unwrap();
        fs::write(directory.join("zeo.log.2"), "").unwrap();
        writer.write_all(b"more than there is room for\n").unwrap();
        assert_eq!(
            read("zeo.log").unwrap(),
            "five\nmore than there is room for\n"
        );
        fs::remove_dir_all(&directory).unwrap();
    }
}
