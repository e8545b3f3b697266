//! The certificates of `<ssl>`: read at the start, and again when a signal asks for it.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;

use mio::Waker;

use crate::config::SslConfig;
use crate::tls::{Channel, LoadError, Setup, TimeProvider, TlsError, UnixTime, Warning};

/// What new connections are served with.
#[derive(Debug)]
pub(super) struct Certificates {
    config: SslConfig,
    setup: Setup,
    waker: Arc<Waker>,
    /// What is being read, by a thread of its own: files may make it wait, and commands do.
    loading: Option<Receiver<Loaded>>,
    /// It was asked for again meanwhile.
    again: bool,
}

type Loaded = Result<(Setup, Vec<Warning>), LoadError>;

impl Certificates {
    /// Reads them, and waits for that.
    pub(super) fn load(config: &SslConfig, waker: &Arc<Waker>) -> Result<Self, String> {
        Ok(Self {
            config: config.clone(),
            setup: setup(config)?,
            waker: waker.clone(),
            loading: None,
            again: false,
        })
    }

    /// What a new connection needs.
    pub(super) fn channel(&self) -> Option<Channel> {
        match Channel::new(&self.setup) {
            Ok(channel) => Some(channel),
            Err(error) => {
                log::error!("TLS cannot be begun ({error})");
                None
            }
        }
    }

    /// What a connection needs that we have made.
    pub(super) fn connect(&self) -> Result<Channel, TlsError> {
        Channel::connect(&self.setup)
    }

    /// Begins to read them anew. Who is connected stays so.
    pub(super) fn reload(&mut self) {
        if self.loading.is_some() {
            self.again = true;
            return;
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let (config, waker) = (self.config.clone(), self.waker.clone());
        let thread = thread::Builder::new()
            .name("certificates".to_owned())
            .spawn(move || {
                // The server may have been stopped meanwhile.
                let _ = sender.send(Setup::load(&config, Arc::new(Clock)));
                if let Err(error) = waker.wake() {
                    log::error!("the reactor cannot be woken ({error})");
                }
            });
        match thread {
            Ok(_) => self.loading = Some(receiver),
            Err(error) => log::error!("certificates not read again: {error}"),
        }
    }

    /// Takes what has been read, if it has.
    pub(super) fn take_loaded(&mut self) {
        let Some(loading) = &self.loading else {
            return;
        };
        match loading.try_recv() {
            Err(TryRecvError::Empty) => return,
            Ok(Ok((setup, warnings))) => {
                self.setup = setup;
                log_warnings(&self.config, &warnings);
                log::info!("certificates read again");
            }
            Ok(Err(error)) => log::error!(
                "certificates not read again, the former stay: {}",
                complaint(&self.config, &error)
            ),
            Err(TryRecvError::Disconnected) => log::error!("certificates not read again"),
        }
        self.loading = None;
        if std::mem::take(&mut self.again) {
            self.reload();
        }
    }
}

/// Reads them once, for a client of another server.
pub(super) fn setup(config: &SslConfig) -> Result<Setup, String> {
    let loaded = Setup::load(config, Arc::new(Clock));
    let (setup, warnings) = loaded.map_err(|error| complaint(config, &error))?;
    log_warnings(config, &warnings);
    Ok(setup)
}

fn complaint(config: &SslConfig, error: &LoadError) -> String {
    format!("{}: <ssl>: {error}", config.place)
}

fn log_warnings(config: &SslConfig, warnings: &[Warning]) {
    for Warning(text) in warnings {
        log::warn!("{}: <ssl>: {text}", config.place);
    }
}

/// The time by which certificates are valid or not.
#[derive(Debug)]
struct Clock;

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(super::now().wall))
    }
}
