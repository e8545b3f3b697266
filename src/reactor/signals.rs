//! Signals, brought to the loop by a thread that waits for nothing else.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use mio::Waker;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2, SIGXFSZ};

/// What an operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGTERM or SIGINT: stop in good order.
    Stop(&'static str),
    /// SIGHUP: reopen the log files; without any, there is no terminal any more: stop.
    HangUp,
    /// SIGUSR2: reopen the log files, as runzeo does.
    ReopenLog,
}

/// The signals that came and were not taken yet.
#[derive(Debug)]
pub(super) struct Signals {
    received: Receiver<Signal>,
    stop: Arc<AtomicBool>,
}

impl Signals {
    /// Takes the signals over from the system's defaults.
    pub(super) fn install(waker: Arc<Waker>) -> io::Result<Self> {
        // A file above `ulimit -f` shall be a failed write, not the end of the process.
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR2])?;
        let (sender, received) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let wants_stop = stop.clone();
        thread::Builder::new()
            .name("signals".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || {
                for number in signals.forever() {
                    let signal = match number {
                        SIGHUP => Signal::HangUp,
                        SIGUSR2 => Signal::ReopenLog,
                        SIGINT => Signal::Stop("SIGINT"),
                        _ => Signal::Stop("SIGTERM"),
                    };
                    if matches!(signal, Signal::Stop(_)) {
                        wants_stop.store(true, Ordering::Release);
                    }
                    if sender.send(signal).is_err() || waker.wake().is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self { received, stop })
    }

    /// Whether the process shall stop; for who does not serve yet. Other signals are put off.
    pub(super) fn wants_stop(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The next one.
    pub(super) fn take(&self) -> Option<Signal> {
        self.received.try_recv().ok()
    }
}
