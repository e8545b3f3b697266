//! Commands are real ones of the shell. All turns are bounded.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process;

use mio::{Events, Poll, Token};

use super::*;
use crate::ids::NodeId;
use crate::replica::event::Readers;

struct Rig {
    poll: Poll,
    office: Office,
    directory: PathBuf,
    consequences: Vec<Consequence>,
    now: Instant,
}

const OPEN: Serving = Serving {
    writers: Writers::Open,
    readers: Readers::Open,
};

impl Rig {
    #[expect(clippy::disallowed_methods, reason = "any time will do")]
    fn new(name: &str, on_promote: &str, on_demote: &str) -> Self {
        let directory = env::temp_dir().join(format!("standby-office-{}-{name}", process::id()));
        fs::create_dir_all(&directory).unwrap();
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let command = |line: &str| (!line.is_empty()).then(|| line.to_owned());
        let log = format!("log() {{ echo \"$@\" >>{}/log; }};", directory.display());
        let line = |line: &str| command(line).map(|line| format!("{log} {line}"));
        let office = Office {
            on_promote: line(on_promote),
            on_demote: line(on_demote),
            environment: vec![("STANDBY_NODE", "alpha".to_owned())],
            timeout: OFFICE_COMMAND_TIMEOUT,
            waker,
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
        Self {
            poll,
            office,
            directory,
            consequences: Vec::new(),
            now: Instant::now(),
        }
    }

    fn office(&mut self, is_primary: bool, counter: u64) {
        let node = NodeId::new("alpha").unwrap();
        self.office.on_office(is_primary, Epoch { counter, node });
    }

    /// Turns until nothing runs.
    fn run(&mut self) {
        let mut events = Events::with_capacity(8);
        for _ in 0..20_000 {
            let consequence = self.office.turn(self.now);
            self.consequences.extend(consequence);
            if self.office.running.is_none() {
                return;
            }
            let wait = Some(Duration::from_millis(1));
            self.poll.poll(&mut events, wait).unwrap();
        }
        panic!("a command does not end");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn writers(&self) -> Writers {
        self.office.gate(OPEN).writers
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

const TELL: &str = "log $STANDBY_NODE $STANDBY_ROLE $STANDBY_EPOCH $STANDBY_REASON";

#[test]
fn writers_wait_until_the_command_has_succeeded() {
    let mut rig = Rig::new("waits", TELL, TELL);
    assert_eq!(rig.writers(), Writers::Open, "that decides the node");
    rig.office(true, 7);
    assert_eq!(rig.writers(), Writers::Closed);
    let draining = Serving {
        writers: Writers::Draining,
        ..OPEN
    };
    assert_eq!(rig.office.gate(draining), draining);
    rig.run();
    assert_eq!(rig.consequences, [Consequence::Open]);
    assert_eq!(rig.writers(), Writers::Open);
    rig.office(false, 8);
    rig.run();
    assert_eq!(
        rig.log(),
        "alpha primary 7-alpha elected\nalpha replica 8-alpha demoted\n"
    );
}

#[test]
fn a_renewal_of_the_office_runs_nothing_and_closes_nothing() {
    let mut rig = Rig::new("renewal", TELL, TELL);
    rig.office(true, 7);
    // It is renewed while the command runs.
    rig.office(true, 8);
    assert_eq!(rig.writers(), Writers::Closed);
    rig.run();
    assert_eq!(rig.consequences, [Consequence::Open]);
    assert_eq!(rig.writers(), Writers::Open);
    rig.office(true, 9);
    assert_eq!(rig.writers(), Writers::Open);
    rig.run();
    rig.office(false, 10);
    rig.run();
    assert_eq!(
        rig.log(),
        "alpha primary 7-alpha elected\nalpha replica 10-alpha demoted\n"
    );
}

#[test]
fn without_a_command_nobody_waits() {
    let mut rig = Rig::new("none", "", TELL);
    rig.office(true, 1);
    assert_eq!(rig.writers(), Writers::Open);
    rig.office(false, 1);
    rig.run();
    assert_eq!(rig.log(), "alpha replica 1-alpha demoted\n");
}

#[test]
fn commands_run_one_after_the_other_and_in_order() {
    let gate = "until [ -e $(dirname $0)/go ]; do sleep 0.01; done;";
    let mut rig = Rig::new("order", TELL, "");
    let go = rig.directory.join("go");
    let gate = gate.replace("$(dirname $0)", &rig.directory.display().to_string());
    let log = rig.office.on_promote.clone().unwrap();
    rig.office.on_demote = Some(format!("{gate} {log}"));
    rig.office.order(false, "start");
    rig.office.run_next();
    // It becomes primary while that runs, and is so no more, and is so again.
    rig.office(true, 1);
    rig.office(false, 1);
    assert_eq!(rig.office.next, None, "what was not begun is not undone");
    rig.office(true, 2);
    assert_eq!(rig.writers(), Writers::Closed);
    assert_eq!(rig.log(), "");
    fs::write(&go, "").unwrap();
    rig.run();
    assert_eq!(
        rig.log(),
        "alpha replica 0-none start\nalpha primary 2-alpha elected\n"
    );
    assert_eq!(rig.consequences, [Consequence::Open]);
}

#[test]
fn where_it_fails_another_one_shall_be_primary_and_then_it_is_tried_again() {
    let mut rig = Rig::new("fails", "log tried; exit 3", TELL);
    rig.office(true, 1);
    rig.run();
    let why = "on-promote has failed (exit status: 3)".to_owned();
    assert_eq!(rig.consequences, [Consequence::HandOver(why.clone())]);
    assert_eq!(rig.writers(), Writers::Closed);
    let trouble = rig.office.trouble();
    assert_eq!(trouble, Some(format!("no writer is let in: {why}")));
    // There was nobody.
    rig.consequences.clear();
    rig.now += OFFICE_RETRY;
    assert_eq!(rig.office.deadline(), Some(rig.now));
    rig.run();
    assert_eq!(rig.consequences, [Consequence::Tell(why)]);
    assert_eq!(rig.log(), "tried\ntried\n");
    rig.office.on_promote = Some("true".to_owned());
    rig.now += OFFICE_RETRY;
    rig.run();
    assert_eq!(rig.consequences.last(), Some(&Consequence::Open));
    assert_eq!((rig.writers(), rig.office.trouble()), (Writers::Open, None));
}

#[test]
fn a_command_that_takes_too_long_is_killed_with_what_it_has_started() {
    let mut rig = Rig::new("long", "sleep 1000 & wait", "");
    rig.office.timeout = Duration::from_millis(30);
    rig.office(true, 1);
    rig.run();
    let why = "on-promote has failed (it did not end within 30ms, and was killed)".to_owned();
    assert_eq!(rig.consequences, [Consequence::HandOver(why)]);
}

#[test]
fn what_a_command_leaves_running_keeps_nobody_waiting() {
    let mut rig = Rig::new("leaves", "sleep 5 & echo begun", "");
    rig.office(true, 1);
    rig.run();
    assert_eq!(rig.consequences, [Consequence::Open]);
}

#[test]
fn who_ends_in_office_runs_the_command_and_waits_for_it() {
    let mut rig = Rig::new("ends", "sleep 0.05; log one", TELL);
    rig.office(true, 1);
    rig.office.leave(false);
    rig.office.finish();
    assert_eq!(rig.log(), "one\nalpha replica 1-alpha stopped\n");
    // Who was never in office has nothing to give up.
    let mut rig = Rig::new("idle", TELL, TELL);
    rig.office.leave(true);
    assert!(rig.office.running.is_none());
}

#[test]
fn a_late_end_of_a_former_time_in_office_opens_nothing() {
    let mut rig = Rig::new("late", "exit 1", TELL);
    rig.office(true, 1);
    rig.office(false, 1);
    rig.office(true, 2);
    rig.run();
    // The first one was told, and no more.
    assert!(matches!(rig.consequences[0], Consequence::Tell(_)));
    assert!(matches!(rig.consequences[1], Consequence::HandOver(_)));
    assert_eq!(rig.log(), "");
}
