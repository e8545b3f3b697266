//! What goes wrong with clients, and with their connections.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::front::FrontOut;
use super::message::Conn;
use super::work::Mishap;
use super::{Crowd, Delivery};
use crate::ids::NodeId;

/// A fault that ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Silence(usize, NodeId),
    Pause(usize),
    Death(usize),
    /// A connection with a dead end is reset.
    HalfOpen(Conn),
}

impl Crowd {
    /// The process dies, and the kernel closes its connections.
    fn kill(&mut self, number: usize, now: Instant) {
        self.with_client(number, now, |client, out| client.kill(out));
        for conn in self.conns_of(number) {
            self.send(conn, Delivery::Gone, now);
        }
        self.end_later(End::Death(number), now, 3_000);
    }

    /// The machine dies. Nobody is told, for long.
    pub(super) fn vanish(&mut self, number: usize, now: Instant) {
        self.with_client(number, now, |client, out| client.kill(out));
        for conn in self.conns_of(number) {
            self.links.get_mut(&conn).expect("just found").is_dead = true;
            self.end_later(End::HalfOpen(conn), now, 120_000);
        }
        self.end_later(End::Death(number), now, 5_000);
    }

    fn conns_of(&self, number: usize) -> Vec<Conn> {
        let links = self.links.iter();
        let ours = links.filter(|(_, link)| link.client == number && !link.is_dead);
        ours.map(|(conn, _)| *conn).collect()
    }

    fn end_later(&mut self, end: End, now: Instant, millis_max: u64) {
        let at = now + Duration::from_millis(1 + self.random.next() % millis_max);
        self.queued += 1;
        self.ends.insert((at, self.queued), end);
    }

    pub(super) fn end(&mut self, end: End, now: Instant) {
        match end {
            End::Silence(number, node) => {
                self.silent.remove(&(number, node));
                self.release(now);
            }
            End::Pause(number) => {
                self.paused_clients.remove(&number);
                self.release(now);
            }
            End::Death(number) => self.start_client(number, now),
            End::HalfOpen(conn) => self.send(conn, Delivery::Gone, now),
        }
    }

    /// Something happens to a client.
    pub(crate) fn inject(&mut self, now: Instant) {
        let number = self.random.below(self.clients.len());
        match self.random.below(10) {
            0 => {
                self.checks.mark("fault: client killed");
                self.kill(number, now);
            }
            1 => {
                self.checks.mark("fault: client vanished");
                self.vanish(number, now);
            }
            2 => {
                self.checks.mark("fault: client paused");
                self.paused_clients.insert(number);
                let longest = if self.random.percent(10) {
                    60_000
                } else {
                    8_000
                };
                self.end_later(End::Pause(number), now, longest);
            }
            3 | 4 => {
                self.checks.mark("fault: silence");
                let nodes: BTreeSet<NodeId> = self.nodes_of(number);
                let at = self.random.below(nodes.len());
                let node = *nodes.iter().nth(at).expect("it is below the count");
                self.silent.insert((number, node));
                self.end_later(End::Silence(number, node), now, 8_000);
            }
            5..=7 => {
                self.checks.mark("fault: connection cut");
                self.cut(number, now);
            }
            8 => {
                let mishaps = [Mishap::Stick, Mishap::VanishVoted, Mishap::VanishFinishing];
                let mishap = mishaps[self.random.below(mishaps.len())];
                self.checks.mark(match mishap {
                    Mishap::Stick => "fault: stuck in vote",
                    Mishap::VanishVoted => "fault: vanishes after vote",
                    Mishap::VanishFinishing => "fault: vanishes in finish",
                });
                self.clients[number].work.mishap = Some(mishap);
            }
            _ => {
                self.checks.mark("fault: connections twice");
                if self.clients[number].is_up {
                    self.with_client(number, now, |client, out| client.connect_again(out));
                }
            }
        }
    }

    fn nodes_of(&self, number: usize) -> BTreeSet<NodeId> {
        let addresses = self.setup.clients[number].addresses.iter();
        addresses.map(|address| address.node).collect()
    }

    /// One of its connections ends for both sides, most often the one that it works with.
    fn cut(&mut self, number: usize, now: Instant) {
        let conns = self.conns_of(number);
        if conns.is_empty() {
            return;
        }
        let any = conns[self.random.below(conns.len())];
        let conn = match self.clients[number].conn() {
            Some(conn) if self.random.percent(70) => conn,
            _ => any,
        };
        // What is on its way is lost.
        self.queue.retain(|_, (of, _)| *of != conn);
        self.held.retain(|(of, _)| *of != conn);
        let Some(link) = self.links.remove(&conn) else {
            return;
        };
        self.checks.on_gone(conn);
        let node = link.address.node;
        if link.is_accepted
            && let Some(front) = self.fronts.get_mut(&node)
        {
            let mut out = FrontOut::default();
            front.on_hangup(conn, now, &mut out);
            self.front_wants(node, out, now);
        }
        self.with_client(number, now, |client, out| {
            client.on_hangup(conn, true, now, out)
        });
    }

    /// Faults end: all clients run, and reach all that runs.
    pub(crate) fn calm(&mut self, now: Instant) {
        for (_, end) in std::mem::take(&mut self.ends) {
            self.end(end, now);
        }
        self.paused_clients.clear();
        self.silent.clear();
        self.isolated.clear();
        for number in 0..self.clients.len() {
            self.clients[number].work.mishap = None;
            self.start_client(number, now);
            let work = &self.clients[number].work;
            self.at_calm[number] = (work.committed, work.read);
        }
        self.release(now);
    }
}
