//! Many connections in a short time: how long until a client is greeted, and registered?

use std::time::Instant;

use crate::bench::{Bench, Event, Workload};
use crate::failure::Failure;
use crate::fleet::now;
use crate::meter::SeriesId;

/// Connects, so many at a time. Connections stay open.
#[derive(Debug)]
pub(crate) struct Connect {
    /// When each was begun.
    began: Vec<Instant>,
    count: usize,
    at_once: usize,
    registered: usize,
    greetings: SeriesId,
    connects: SeriesId,
}

impl Connect {
    /// So many connections.
    pub(crate) fn new(bench: &mut Bench, count: usize, at_once: usize) -> Self {
        Self {
            began: Vec::with_capacity(count),
            count,
            at_once,
            registered: 0,
            greetings: bench.meter.add_part("greetings"),
            connects: bench.meter.add("connects"),
        }
    }

    /// Begins as many as may be on their way.
    pub(crate) fn start(&mut self, bench: &mut Bench) -> Result<(), Failure> {
        while self.began.len() < self.count && self.began.len() < self.registered + self.at_once {
            self.began.push(now());
            bench.connect()?;
        }
        Ok(())
    }
}

impl Workload for Connect {
    fn on_event(
        &mut self,
        bench: &mut Bench,
        link: usize,
        event: Event,
        now: Instant,
    ) -> Result<(), Failure> {
        let latency = now.saturating_duration_since(self.began[link]);
        match event {
            Event::Greeted => bench.meter.record(self.greetings, latency),
            Event::Registered => {
                bench.meter.record(self.connects, latency);
                self.registered += 1;
                self.start(bench)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.registered == self.count
    }
}
