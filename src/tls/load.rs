//! From the files that `<ssl>` names to what connections need.
//!
//! May wait: for files, and for `password-command`. So it runs before anybody is served, and then
//! on a thread of its own.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;

use rustix::process::{Pid, Signal, kill_process_group};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ServerConfig};

use super::Setup;
use super::certificate::Certificate;
use super::key::{KeyError, private_key};
use super::pem::{Block, PemError, blocks};
use super::verifier::{Others, Verifier};
use crate::config::{Password, SslConfig};
use crate::limits::{PASSWORD_COMMAND_TIMEOUT, PASSWORD_LEN_MAX, PEM_LEN_MAX};

/// Why TLS cannot be set up.
#[derive(Debug)]
pub struct LoadError {
    /// The key in `<ssl>`.
    pub key: &'static str,
    /// The file, or the command.
    pub what: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a file or command.
#[derive(Debug)]
pub enum Problem {
    /// It cannot be read, or run.
    Io(io::Error),
    /// It is longer than any that is meant.
    TooLong,
    /// It is not PEM.
    Pem(PemError),
    /// There is no certificate in it.
    NoCertificate,
    /// The certificate of this number, from one, is none that we know.
    BadCertificate(usize),
    /// The revocation list of this number, from one, is none that we know.
    BadRevocationList(usize),
    /// There is no key that can be used.
    Key(KeyError),
    /// The key is of a kind or size that the cryptography does not do.
    UnusableKey(String),
    /// The key is not the certificate's.
    Mismatch,
    /// The command ended with this status.
    Failed(String),
    /// The command did not end in time.
    Timeout,
    /// rustls does not like it.
    Tls(rustls::Error),
}

/// What an operator should look at, though it does not keep us from serving.
#[derive(Debug, PartialEq, Eq)]
pub struct Warning(pub String);

impl Setup {
    /// Reads the files, and checks that they fit together. `clock` is asked for the time whenever
    /// a certificate is looked at.
    ///
    /// # Errors
    ///
    /// With this configuration nobody could be served.
    pub fn load(
        config: &SslConfig,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<(Self, Vec<Warning>), LoadError> {
        let mut warnings = Vec::new();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = load_verifier(&config.authenticate, &provider, &*clock, &mut warnings)?;
        let identity = load_identity(config, &provider, &*clock, &mut warnings)?;
        let refused = verifier.refused();
        let verifier = Arc::new(verifier);
        let error = |error| LoadError {
            key: "certificate",
            what: config.certificate.display().to_string(),
            problem: Problem::Tls(error),
        };
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        let mut tls = ServerConfig::builder_with_details(provider.clone(), clock.clone())
            .with_protocol_versions(&versions)
            .map_err(error)?
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(identity.clone());
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        // Of rustls what is called dangerous is that somebody else decides whom to trust: here it
        // is who decides about clients, too.
        let mut client = ClientConfig::builder_with_details(provider, clock)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(error)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Others(verifier)))
            .with_client_cert_resolver(identity);
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        let setup = Self {
            config: Arc::new(tls),
            client: Arc::new(client),
            refused,
        };
        Ok((setup, warnings))
    }
}

/// Our certificate, with the chain to its issuer if the file has it, and our key.
fn load_identity(
    config: &SslConfig,
    provider: &CryptoProvider,
    clock: &dyn TimeProvider,
    warnings: &mut Vec<Warning>,
) -> Result<Arc<SingleCertAndKey>, LoadError> {
    let file = File::read("certificate", &config.certificate)?;
    let chain = file.certificates();
    let Some(first) = chain.first() else {
        return Err(file.error(Problem::NoCertificate));
    };
    for (n, der) in chain.iter().enumerate() {
        if Certificate::read(der).is_err() {
            return Err(file.error(Problem::BadCertificate(n + 1)));
        }
    }
    let own = Certificate::read(first).map_err(|_| file.error(Problem::BadCertificate(1)))?;
    warn_of_period("certificate", &file.path, &own, clock, warnings);
    let key_file = match &config.key {
        Some(path) => &File::read("key", path)?,
        None => &file,
    };
    warn_of_readers(key_file.key, &key_file.path, warnings);
    let key: Result<PrivateKeyDer<'static>, PasswordOrKey> =
        private_key(&key_file.blocks, || match &config.password {
            None => Ok(None),
            Some(password) => Ok(Some(read_password(password, warnings)?)),
        });
    let key = key.map_err(|error| match error {
        PasswordOrKey::Password(error) => error,
        PasswordOrKey::Key(error) => key_file.error(Problem::Key(error)),
    })?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| {
            let why = match error {
                rustls::Error::General(why) => why,
                other => other.to_string(),
            };
            key_file.error(Problem::UnusableKey(why))
        })?;
    // Not by rustls, which reads no certificates of version 1.
    let public_key = SubjectPublicKeyInfoDer::from(own.public_key);
    if key.public_key().is_some_and(|ours| ours != public_key) {
        return Err(key_file.error(Problem::Mismatch));
    }
    let identity = CertifiedKey::new(chain.clone(), key);
    Ok(Arc::new(SingleCertAndKey::from(identity)))
}

enum PasswordOrKey {
    Password(LoadError),
    Key(KeyError),
}

impl From<LoadError> for PasswordOrKey {
    fn from(error: LoadError) -> Self {
        Self::Password(error)
    }
}

impl From<KeyError> for PasswordOrKey {
    fn from(error: KeyError) -> Self {
        Self::Key(error)
    }
}

/// Those who are let in: from a file, or from the files of a directory.
fn load_verifier(
    path: &Path,
    provider: &CryptoProvider,
    clock: &dyn TimeProvider,
    warnings: &mut Vec<Warning>,
) -> Result<Verifier, LoadError> {
    const KEY: &str = "authenticate";
    let mut verifier = Verifier::new(provider.signature_verification_algorithms);
    for path in files_of(path).map_err(|error| LoadError::io(KEY, path, error))? {
        let file = File::read(KEY, &path)?;
        for (n, der) in file.certificates().into_iter().enumerate() {
            let bad = |_| file.error(Problem::BadCertificate(n + 1));
            let certificate = Certificate::read(&der).map_err(bad)?;
            warn_of_period(KEY, &path, &certificate, clock, warnings);
            if !certificate.uses.allow_client() && !certificate.uses.signs_clients() {
                warnings.push(Warning(format!(
                    "{KEY} {}: {}: neither a client nor an authority may use this certificate",
                    path.display(),
                    certificate.subject_text()
                )));
            }
            verifier.trust(der.clone()).map_err(bad)?;
        }
        let lists = file.blocks.iter().filter(|it| it.label == "X509 CRL");
        for (n, list) in lists.enumerate() {
            let bad = |_| file.error(Problem::BadRevocationList(n + 1));
            verifier.revoke(&list.data).map_err(bad)?;
        }
    }
    if verifier.known().is_empty() {
        return Err(LoadError {
            key: KEY,
            what: path.display().to_string(),
            problem: Problem::NoCertificate,
        });
    }
    Ok(verifier)
}

/// The file itself; or of a directory those that are called like certificates, or like what
/// `openssl rehash` makes of them.
fn files_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let suffix = path.extension().and_then(|it| it.to_str()).unwrap_or("");
        let is_hashed = suffix.trim_start_matches('r').parse::<u8>().is_ok();
        if is_hashed || ["pem", "crt", "cer", "crl"].contains(&suffix) {
            // A link that leads nowhere is an error: somebody who should be let in is not.
            let real = fs::canonicalize(&path).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?;
            paths.push(real);
        }
    }
    // A certificate and the link by its hash are one.
    paths.sort();
    paths.dedup();
    Ok(paths)
}

/// A file of PEM blocks.
struct File {
    /// The key in `<ssl>` that names it.
    key: &'static str,
    path: PathBuf,
    blocks: Vec<Block>,
}

impl File {
    fn read(key: &'static str, path: &Path) -> Result<Self, LoadError> {
        let text = read_file(key, path, PEM_LEN_MAX)?;
        let mut file = Self {
            key,
            path: path.to_owned(),
            blocks: Vec::new(),
        };
        file.blocks = blocks(&text).map_err(|error| file.error(Problem::Pem(error)))?;
        Ok(file)
    }

    fn certificates(&self) -> Vec<CertificateDer<'static>> {
        let blocks = self.blocks.iter();
        blocks
            .filter(|block| ["CERTIFICATE", "X509 CERTIFICATE"].contains(&block.label.as_str()))
            .map(|block| CertificateDer::from(block.data.clone()))
            .collect()
    }

    fn error(&self, problem: Problem) -> LoadError {
        LoadError {
            key: self.key,
            what: self.path.display().to_string(),
            problem,
        }
    }
}

fn read_file(key: &'static str, path: &Path, len_max: u64) -> Result<Vec<u8>, LoadError> {
    let mut text = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(len_max + 1).read_to_end(&mut text))
        .map_err(|error| LoadError::io(key, path, error))?;
    if text.len() as u64 > len_max {
        return Err(LoadError {
            key,
            what: path.display().to_string(),
            problem: Problem::TooLong,
        });
    }
    Ok(text)
}

/// The first line of a file, or of what a command says.
fn read_password(password: &Password, warnings: &mut Vec<Warning>) -> Result<Vec<u8>, LoadError> {
    let text = match password {
        Password::File(path) => {
            warn_of_readers("password-file", path, warnings);
            read_file("password-file", path, PASSWORD_LEN_MAX)?
        }
        Password::Command(command) => run(command).map_err(|problem| LoadError {
            key: "password-command",
            what: command.clone(),
            problem,
        })?,
    };
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(line.strip_suffix(b"\r").unwrap_or(line).to_vec())
}

/// Runs a command of the shell; what it complains of goes where our complaints go.
fn run(command: &str) -> Result<Vec<u8>, Problem> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // A group of its own, so that all of it can be ended.
        .process_group(0)
        .spawn()
        .map_err(Problem::Io)?;
    let group = Pid::from_child(&child);
    let (sender, answer) = mpsc::channel();
    let waiter = thread::Builder::new().spawn(move || {
        let mut text = Vec::new();
        let read = match child.stdout.take() {
            Some(stdout) => stdout.take(PASSWORD_LEN_MAX + 1).read_to_end(&mut text),
            None => Ok(0),
        };
        let status = child.wait();
        // Nobody listens any more if it took too long.
        let _ = sender.send(read.and(status).map(|status| (text, status)));
    });
    let end = || kill_process_group(group, Signal::KILL);
    if let Err(error) = waiter {
        let _ = end();
        return Err(Problem::Io(error));
    }
    match answer.recv_timeout(PASSWORD_COMMAND_TIMEOUT) {
        Ok(Ok((text, _))) if text.len() as u64 > PASSWORD_LEN_MAX => Err(Problem::TooLong),
        Ok(Ok((text, status))) if status.success() => Ok(text),
        Ok(Ok((_, status))) => Err(Problem::Failed(status.to_string())),
        Ok(Err(error)) => Err(Problem::Io(error)),
        Err(_) => {
            let _ = end();
            Err(Problem::Timeout)
        }
    }
}

fn warn_of_period(
    key: &str,
    path: &Path,
    certificate: &Certificate<'_>,
    clock: &dyn TimeProvider,
    warnings: &mut Vec<Warning>,
) {
    let Some(now) = clock.current_time() else {
        return;
    };
    if certificate.period.contains(now) {
        return;
    }
    let what = if certificate.period.has_begun(now) {
        "has expired"
    } else {
        "is not valid yet"
    };
    warnings.push(Warning(format!(
        "{key} {}: {} {what} ({})",
        path.display(),
        certificate.subject_text(),
        certificate.period
    )));
}

/// A secret that everybody on the machine may read is none.
fn warn_of_readers(key: &str, path: &Path, warnings: &mut Vec<Warning>) {
    if fs::metadata(path).is_ok_and(|it| it.permissions().mode() & 0o004 != 0) {
        let path = path.display();
        warnings.push(Warning(format!("{key} {path}: everybody may read it")));
    }
}

impl LoadError {
    fn io(key: &'static str, path: &Path, error: io::Error) -> Self {
        Self {
            key,
            what: path.display().to_string(),
            problem: Problem::Io(error),
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.key, self.what, self.problem)
    }
}

impl std::error::Error for LoadError {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::TooLong => write!(f, "it is too long to be what is meant"),
            Self::Pem(error) => write!(f, "{error}"),
            Self::NoCertificate => write!(f, "there is no certificate in it"),
            Self::BadCertificate(n) => write!(f, "certificate {n} in it cannot be read"),
            Self::BadRevocationList(n) => write!(
                f,
                "revocation list {n} in it cannot be read: it has to be of version 2, with a \
                 number ('crlnumber' in openssl.cnf)"
            ),
            Self::Key(error) => write!(f, "{error}"),
            Self::UnusableKey(why) => write!(
                f,
                "the key cannot be used: RSA with 2048 to 4096 bits, ECDSA with P-256 or P-384, \
                 and Ed25519 can ({why})"
            ),
            Self::Mismatch => write!(f, "the key does not belong to the certificate"),
            Self::Failed(status) => write!(f, "it failed ({status})"),
            Self::Timeout => write!(
                f,
                "it has not ended after {} s",
                PASSWORD_COMMAND_TIMEOUT.as_secs()
            ),
            Self::Tls(error) => write!(f, "{error}"),
        }
    }
}
