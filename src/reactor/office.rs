//! `on-promote` and `on-demote`: commands that give this node what only a primary may have, an
//! address for example, and take it away.
//!
//! One runs at a time, in the order of what has happened: a node that was primary and is so again
//! has run `on-demote` in between. `on-demote` is run at the start, too, since a node that was
//! killed could not do it. Until `on-promote` has succeeded no writer is let in.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mio::Waker;
use rustix::process::{Pid, Signal, kill_process_group};

use super::daemon::in_background;
use crate::config::StandbyConfig;
use crate::ids::Epoch;
use crate::limits::{
    OFFICE_COMMAND_TIMEOUT, OFFICE_OUTPUT_LEN_MAX, OFFICE_RETRY, TROUBLE_LOG_INTERVAL,
};
use crate::replica::event::{Serving, Writers};

/// See the module's page.
pub(super) struct Office {
    on_promote: Option<String>,
    on_demote: Option<String>,
    /// What each command is told besides: names and values.
    environment: Vec<(&'static str, String)>,
    timeout: Duration,
    waker: Arc<Waker>,
    running: Option<(Order, Receiver<Result<(), String>>)>,
    /// What is run next. There is no more: what came before it is void.
    next: Option<Order>,
    /// What this node is now.
    is_primary: bool,
    epoch: Epoch,
    /// `on-promote` has succeeded since this node is primary, or there is none.
    is_open: bool,
    /// `on-promote` was begun, and `on-demote` was not since.
    has_promoted: bool,
    /// When a failed `on-promote` is tried again.
    retry: Option<Instant>,
    /// Why it failed.
    failure: Option<String>,
    /// When another node was to be primary because of that.
    handed_over: Option<Instant>,
}

/// What the end of a command leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Consequence {
    /// Writers may be let in now.
    Open,
    /// Something for the log and the status.
    Tell(String),
    /// The same, and another node should be primary.
    HandOver(String),
}

/// A command to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Order {
    is_promotion: bool,
    epoch: Epoch,
    reason: &'static str,
}

impl Order {
    const fn key(&self) -> &'static str {
        if self.is_promotion {
            "on-promote"
        } else {
            "on-demote"
        }
    }
}

/// Time for what a command has said to arrive here when it has ended. What it has left running may
/// keep its output open for ever.
const OUTPUT_TIMEOUT: Duration = Duration::from_millis(200);

impl Office {
    /// Of a node that starts, and is not primary.
    pub(super) fn new(config: &StandbyConfig, waker: &Arc<Waker>) -> Self {
        let mut office = Self {
            on_promote: config.on_promote.clone(),
            on_demote: config.on_demote.clone(),
            environment: vec![
                ("STANDBY_NODE", config.node.to_string()),
                ("STANDBY_GROUP", config.group.clone()),
                ("STANDBY_SITE", config.site.clone()),
            ],
            timeout: OFFICE_COMMAND_TIMEOUT,
            waker: waker.clone(),
            running: None,
            next: None,
            is_primary: false,
            epoch: Epoch::ZERO,
            is_open: true,
            has_promoted: false,
            retry: None,
            failure: None,
            handed_over: None,
        };
        office.order(false, "start");
        office.run_next();
        office
    }

    /// This node is primary now, or is so no more.
    pub(super) fn on_office(&mut self, is_primary: bool, epoch: Epoch) {
        if is_primary && self.is_primary {
            self.on_renewal(epoch);
            return;
        }
        self.is_primary = is_primary;
        self.epoch = epoch;
        self.is_open = self.on_promote.is_none();
        self.retry = None;
        self.failure = None;
        let reason = if is_primary { "elected" } else { "demoted" };
        self.order(is_primary, reason);
        self.run_next();
    }

    /// It stays primary, in a later epoch: its clients have noticed nothing, and what a command
    /// has done, does, or is to do is for that one, too.
    fn on_renewal(&mut self, epoch: Epoch) {
        let before = std::mem::replace(&mut self.epoch, epoch);
        let running = self.running.as_mut().map(|(order, _)| order);
        for order in running.into_iter().chain(&mut self.next) {
            if order.is_promotion && order.epoch == before {
                order.epoch = epoch;
            }
        }
    }

    /// What clients may do, as far as the commands have done their part.
    pub(super) fn gate(&self, serving: Serving) -> Serving {
        let is_kept = self.is_primary && !self.is_open;
        let writers = match serving.writers {
            // It ends by itself: there is nobody to wait for.
            Writers::Draining => Writers::Draining,
            _ if is_kept => Writers::Closed,
            writers => writers,
        };
        Serving { writers, ..serving }
    }

    /// What is wrong with it, for the status.
    pub(super) fn trouble(&self) -> Option<String> {
        let failure = self.failure.as_ref()?;
        Some(format!("no writer is let in: {failure}"))
    }

    /// Looks whether a command has ended, and begins the next one.
    pub(super) fn turn(&mut self, now: Instant) -> Option<Consequence> {
        let ended = match &self.running {
            None => None,
            Some((_, result)) => match result.try_recv() {
                Ok(result) => Some(result),
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => Some(Err("its thread has ended".to_owned())),
            },
        };
        let order = self.running.take();
        let consequence = match (order, ended) {
            (Some((order, _)), Some(result)) => self.on_ended(&order, result, now),
            _ => None,
        };
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            self.order(true, "retry");
        }
        self.run_next();
        consequence
    }

    /// When [`Self::turn`] is to be called.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.retry
    }

    /// This process ends: `on-demote` is begun, if `on-promote` ever was. [`Self::finish`] is to
    /// follow.
    pub(super) fn leave(&mut self, has_failed: bool) {
        self.retry = None;
        if self.has_promoted || self.next.as_ref().is_some_and(|it| it.is_promotion) {
            self.order(false, if has_failed { "failed" } else { "stopped" });
        }
        self.run_next();
    }

    /// Waits for what runs and is to be run.
    pub(super) fn finish(&mut self) {
        while let Some((order, result)) = self.running.take() {
            match result.recv_timeout(self.timeout + OUTPUT_TIMEOUT) {
                Ok(Ok(())) => {}
                Ok(Err(why)) => log::error!("{}: {why}", order.key()),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    log::error!("{}: its end is not known", order.key());
                }
            }
            self.run_next();
        }
    }

    fn on_ended(
        &mut self,
        order: &Order,
        result: Result<(), String>,
        now: Instant,
    ) -> Option<Consequence> {
        let key = order.key();
        let is_current = order.is_promotion && self.is_primary && order.epoch == self.epoch;
        match result {
            Ok(()) if is_current => {
                self.is_open = true;
                self.failure = None;
                Some(Consequence::Open)
            }
            Ok(()) => None,
            Err(why) if is_current => {
                let why = format!("{key} has failed ({why})");
                self.failure = Some(why.clone());
                self.retry = Some(now + OFFICE_RETRY);
                let lately = |at| now < at + TROUBLE_LOG_INTERVAL;
                // Where it fails everywhere, nodes would pass the office round for ever.
                if self.handed_over.is_some_and(lately) {
                    return Some(Consequence::Tell(why));
                }
                self.handed_over = Some(now);
                Some(Consequence::HandOver(why))
            }
            Err(why) => Some(Consequence::Tell(format!("{key} has failed ({why})"))),
        }
    }

    /// Something is to be run, and what is not begun yet is void.
    fn order(&mut self, is_promotion: bool, reason: &'static str) {
        let skipped = self.next.take();
        let last = self.running.as_ref().map(|(order, _)| order.is_promotion);
        let order = Order {
            is_promotion,
            epoch: self.epoch,
            reason,
        };
        // Back where the last one leads to: nothing has happened in between.
        let is_done = skipped.is_some() && !is_promotion && last == Some(false);
        self.next = Some(order).filter(|_| !is_done);
    }

    fn run_next(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some(order) = self.next.take() else {
            return;
        };
        let command = match order.is_promotion {
            true => &self.on_promote,
            false => &self.on_demote,
        };
        self.has_promoted = order.is_promotion;
        let Some(command) = command else {
            return;
        };
        let mut environment = self.environment.clone();
        let role = if order.is_promotion {
            "primary"
        } else {
            "replica"
        };
        environment.extend([
            ("STANDBY_ROLE", role.to_owned()),
            ("STANDBY_EPOCH", order.epoch.to_string()),
            ("STANDBY_REASON", order.reason.to_owned()),
        ]);
        let (key, command, timeout) = (order.key(), command.clone(), self.timeout);
        log::info!("{key}: {command:?} ({})", order.reason);
        let work = move || run(key, &command, environment, timeout);
        match in_background("office", self.waker.clone(), work) {
            Ok(result) => self.running = Some((order, result)),
            Err(error) => {
                log::error!("{key}: there is no thread for it: {error}");
                let (sender, result) = mpsc::sync_channel(1);
                let _ = sender.try_send(Err(error.to_string()));
                self.running = Some((order, result));
                if let Err(error) = self.waker.wake() {
                    log::error!("the reactor cannot be woken ({error})");
                }
            }
        }
    }
}

/// Runs a command of the shell to its end, or for so long; what it says goes to the log.
fn run(
    key: &str,
    command: &str,
    environment: Vec<(&'static str, String)>,
    timeout: Duration,
) -> Result<(), String> {
    let (output, input) = io::pipe().map_err(|error| error.to_string())?;
    let errors = input.try_clone().map_err(|error| error.to_string())?;
    let child = Command::new("/bin/sh")
        .args(["-c", command])
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(input)
        .stderr(errors)
        // So that what it starts can be ended with it.
        .process_group(0)
        .spawn();
    let mut child = child.map_err(|error| error.to_string())?;
    let said = listen(output);
    let status = wait(&mut child, timeout);
    for line in said.lines() {
        log::info!("{key}: {line}");
    }
    match status {
        Ok(()) => {
            log::info!("{key}: done");
            Ok(())
        }
        Err(why) => Err(why),
    }
}

/// What a command says.
struct Said {
    text: Arc<Mutex<Vec<u8>>>,
    /// Closed when there will be no more.
    end: Receiver<()>,
}

impl Said {
    fn lines(&self) -> Vec<String> {
        let _ = self.end.recv_timeout(OUTPUT_TIMEOUT);
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&text);
        let shown = |c: char| if c.is_control() { ' ' } else { c };
        let lines = text.lines().map(|line| line.chars().map(shown).collect());
        lines.collect()
    }
}

/// Reads it all, so that the command never waits, and keeps its beginning.
fn listen(mut output: io::PipeReader) -> Said {
    let text = Arc::new(Mutex::new(Vec::new()));
    let (sender, end) = mpsc::sync_channel(0);
    let heard = text.clone();
    let read = move || {
        let _sender: mpsc::SyncSender<()> = sender;
        let mut buf = [0; 4096];
        while let Ok(len @ 1..) = output.read(&mut buf) {
            let mut text = heard.lock().unwrap_or_else(PoisonError::into_inner);
            let room = OFFICE_OUTPUT_LEN_MAX.saturating_sub(text.len());
            text.extend_from_slice(&buf[..len.min(room)]);
        }
    };
    let name = "office-output".to_owned();
    // Without it the pipe is closed, which the command may notice.
    if let Err(error) = thread::Builder::new().name(name).spawn(read) {
        log::error!("no thread for what a command says: {error}");
    }
    Said { text, end }
}

/// The end of a command, which is killed with all that it has started if it takes too long.
fn wait(child: &mut Child, timeout: Duration) -> Result<(), String> {
    const STEP: Duration = Duration::from_millis(10);
    let mut waited = Duration::ZERO;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(status.to_string()),
            Ok(None) if waited < timeout => {
                thread::sleep(STEP);
                waited += STEP;
            }
            Ok(None) => {
                if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                let _ = child.wait();
                return Err(format!("it did not end within {timeout:?}, and was killed"));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

#[cfg(test)]
#[path = "office_tests.rs"]
mod tests;
