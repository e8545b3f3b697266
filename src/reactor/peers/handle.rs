//! For threads that ask other nodes, and wait.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::Duration;

use mio::Waker;

use crate::peer::{Answer, Request};

/// Asks one other node, from any thread but that of the reactor.
#[derive(Clone, Debug)]
pub struct PeerHandle {
    to: String,
    timeout: Duration,
    calls: SyncSender<Call>,
    waker: Arc<Waker>,
}

/// A request of a thread.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) to: String,
    pub(super) request: Request,
    /// Has room for the one answer.
    pub(super) answer: SyncSender<Result<Answer, String>>,
}

impl PeerHandle {
    pub(super) fn new(
        to: &str,
        timeout: Duration,
        calls: SyncSender<Call>,
        waker: Arc<Waker>,
    ) -> Self {
        Self {
            to: to.to_owned(),
            timeout,
            calls,
            waker,
        }
    }

    /// Whom it asks: `host:port`.
    pub fn to(&self) -> &str {
        &self.to
    }

    /// Asks, and waits for the answer. A refusal is an answer.
    ///
    /// # Errors
    ///
    /// Why there is none: the other cannot be reached, or is silent, or takes too long. Asking
    /// again may help. Who cannot be connected to is not tried again at once; this waits for that.
    pub fn call(&self, request: Request) -> Result<Answer, String> {
        self.call_within(request, self.timeout)
    }

    /// The same, with another time to wait at most.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn call_within(&self, request: Request, timeout: Duration) -> Result<Answer, String> {
        let to = &self.to;
        let ends = |_| format!("{to}: this server ends");
        let (sender, receiver) = mpsc::sync_channel(1);
        let call = Call {
            to: to.clone(),
            request,
            answer: sender,
        };
        self.calls.send(call).map_err(|_| ends(()))?;
        let woken = self.waker.wake();
        woken.map_err(|error| format!("{to}: the reactor cannot be woken ({error})"))?;
        match receiver.recv_timeout(timeout) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(format!("{to}: no answer within {timeout:?}")),
            Err(RecvTimeoutError::Disconnected) => Err(ends(())),
        }
    }
}

#[cfg(test)]
impl PeerHandle {
    /// One whose requests are answered by this, or not at all.
    pub(in crate::reactor) fn answering(
        to: &str,
        answer: impl Fn(&Request) -> Option<Answer> + Send + 'static,
    ) -> Self {
        let poll = mio::Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), mio::Token(0)).unwrap();
        let (calls, called) = mpsc::sync_channel::<Call>(8);
        std::thread::spawn(move || {
            let _poll = poll;
            let mut unanswered = Vec::new();
            while let Ok(call) = called.recv() {
                match answer(&call.request) {
                    Some(answer) => call.answer.send(Ok(answer)).unwrap(),
                    None => unanswered.push(call),
                }
            }
        });
        Self::new(to, Duration::from_secs(60), calls, Arc::new(waker))
    }
}
