//! Our place in a cluster: the daemon, the other nodes, the threads that wait for the disk, and
//! the [`Node`] that decides.
//!
//! ```text
//!   daemon ──► channel ──► Node ──► log thread      one request after the other
//!   peers  ──► requests ─►  │  ──► supply thread    blobs and copies for others
//!   server ──► finishes ─►  │  ──► copy threads     one for each copy, or blobs that are fetched
//!                           └────► server           what was applied, what clients may do
//! ```
//!
//! | part | for |
//! |---|---|
//! | `start` | from a configuration to a node that joins |
//! | `threads` | the threads that wait for the disk |
//! | `orders` | what administrators command |
//! | `draining` | a node that shall not be needed |
//! | `work` | commands that read all of the database |

mod draining;
mod orders;
mod start;
mod threads;
mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread::{self};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Token, Waker};

pub(super) use orders::conflict;
pub(super) use start::{Surroundings, open};

use draining::Draining;
use threads::{KeeperThread, ToKeeper, snapshot_of, tell_ended};

use super::admin::AdminId;
use super::copying::{self, Fetcher, SharedBlobs};
use super::daemon::Daemon;
use super::lookout::Lookout;
use super::office::Office;
use super::packing::{Orders, PackThread, Stepped};
use super::peers::{AnswerId, PeerEvent, Peers, RequestId};
use super::tasks::Tasks;
use crate::admin::{Answer as AdminAnswer, WitnessStatus};
use crate::group::channel::{Incoming, To};
use crate::ids::{Epoch, NodeId};
use crate::node::disk::Done;
use crate::node::{Copied, Finish, Node, NotFetched, Output, PackEnd};
use crate::peer::{self, Answer, Heard, Paths, Refusal, RefusalKind};
use crate::replica::event::{Now as ReplicaNow, Serving, Token as NodeToken};
use crate::replica::message::NodeKind;
use crate::replica::settings::StorageName;
use crate::server::{Now, Server, ToNode};
use crate::storage::journal::Reader;
use crate::storage::transfer::BlobName;

/// The first token of the connections with other nodes; they count down from here.
pub(super) const PEERS: Token = Token(usize::MAX - 1_000_000);

/// How long a thread waits for an answer of another node.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// What has been done elsewhere.
enum Ended {
    Disk(Done),
    Copied(u64, Result<Copied, String>),
    Blobs(u64, Result<(), NotFetched>),
    /// These blobs are here.
    Offered(u64, BTreeSet<BlobName>),
    Supplied(AnswerId, Answer),
    Packed(Stepped),
    Task(AdminId, AdminAnswer),
}

/// See the module's page.
pub(super) struct Cluster {
    group: String,
    daemon: Daemon,
    node: Node,
    peers: Peers,
    keeper: Sender<ToKeeper>,
    keeper_thread: KeeperThread,
    supplier: Sender<(AnswerId, peer::Request)>,
    fetcher: Fetcher,
    blobs: SharedBlobs,
    packer: PackThread,
    /// The journal, to be looked at; none if there is none yet.
    pub(super) journal: Option<Reader>,
    ended: Receiver<Ended>,
    ended_sender: Sender<Ended>,
    waker: Arc<Waker>,
    /// Requests for entries that others have made, by the node's number.
    asked: BTreeMap<u64, AnswerId>,
    asked_count: u64,
    /// Our own, with the number of the replica's request.
    asking: BTreeMap<RequestId, u64>,
    office: Office,
    lookout: Lookout,
    /// Commands whose end is not known.
    commands: BTreeMap<NodeToken, AdminId>,
    /// Behind those of the server.
    commands_count: u64,
    /// Packs that administrators have ordered.
    pub(super) orders: Vec<Orders>,
    /// Of each storage: the last pack that was done since the start.
    pub(super) packed: BTreeMap<StorageName, PackEnd>,
    /// Commands that take long.
    pub(super) tasks: Tasks,
    backup_directory: Option<PathBuf>,
    draining: Draining,
    /// What came of commands.
    pub(super) answered: VecDeque<(AdminId, AdminAnswer)>,
    /// What does not change while the process runs.
    pub(super) fixed: Fixed,
    /// The daemon may have more to say at once.
    pub(super) has_more: bool,
    /// Why the node must not go on.
    pub(super) stopped: Option<String>,
    /// The epoch of another primary, which the server was told of.
    followed: Option<Epoch>,
    /// When the node wants to be called.
    deadline: Option<Instant>,
}

/// What a node is, by its configuration.
#[derive(Debug)]
pub(super) struct Fixed {
    pub(super) node: NodeId,
    pub(super) group: String,
    pub(super) site: String,
    pub(super) kind: NodeKind,
}

impl Cluster {
    /// What is known of the node.
    pub(super) const fn node(&self) -> &Node {
        &self.node
    }

    /// Notes what the poll says of the daemon.
    pub(super) fn on_ready(&mut self, event: &Event) {
        self.daemon.on_ready(event);
        self.has_more = true;
    }

    /// Reads certificates anew, if there are any: whether there are.
    pub(super) fn reload_certificates(&mut self) -> bool {
        self.peers.reload_certificates()
    }

    /// Whether a token is of a connection with another node.
    pub(super) const fn owns(&self, token: Token) -> bool {
        self.peers.owns(token)
    }

    /// The same of the other nodes.
    pub(super) fn on_peer_ready(&mut self, event: &Event) {
        self.peers.on_ready(event);
    }

    /// Takes what there is: from the daemon first, then from threads, then from the other nodes.
    pub(super) fn turn(&mut self, server: &mut Server, now: Now) {
        self.has_more = self.daemon.turn(now.mono);
        while let Some(incoming) = self.daemon.poll_incoming() {
            self.tell(&incoming);
            let me = self.daemon.channel().me().cloned();
            self.node.on_incoming(incoming, me.as_ref(), of(now));
            self.follow(server, now);
        }
        while let Ok(ended) = self.ended.try_recv() {
            match ended {
                Ended::Disk(done) => self.node.on_disk(done, of(now)),
                Ended::Copied(id, copied) => self.node.on_copied(id, copied, of(now)),
                Ended::Blobs(id, result) => self.node.on_blobs(id, result, of(now)),
                Ended::Offered(id, came) => self.node.on_offer_fetched(id, &came, of(now)),
                Ended::Supplied(id, answer) => self.peers.answer(id, answer, now.mono),
                Ended::Packed((packing, result)) => self.node.on_pack_stepped(packing, result),
                Ended::Task(id, answer) => {
                    self.tasks.end(id);
                    self.answered.push_back((id, answer));
                }
            }
            self.follow(server, now);
        }
        if let Some(consequence) = self.office.turn(now.mono) {
            self.on_consequence(consequence, server, now);
        }
        self.peers.turn(now.mono);
        while let Some(event) = self.peers.poll_event() {
            self.on_peer_event(event, now);
            self.follow(server, now);
        }
    }

    fn on_peer_event(&mut self, event: PeerEvent, now: Now) {
        match event {
            PeerEvent::Request { id, request, .. } => match request {
                peer::Request::Fetch(fetch) => {
                    self.asked_count += 1;
                    self.asked.insert(self.asked_count, id);
                    self.node.on_requested(self.asked_count, fetch, of(now));
                }
                request => {
                    if self.supplier.send((id, request)).is_err() {
                        self.peers.answer(id, refused("it is stopping"), now.mono);
                    }
                }
            },
            PeerEvent::Answer { id, answer, .. } => {
                let Some(request) = self.asking.remove(&id) else {
                    return;
                };
                match answer {
                    Answer::Fetched(fetched) => self.node.on_fetched(fetched, of(now)),
                    _ => self.node.on_fetch_failed(request, of(now)),
                }
            }
            PeerEvent::Failed { id, why } => {
                if let Some(request) = self.asking.remove(&id) {
                    log::debug!("group {}: no entries: {why}", self.group);
                    self.node.on_fetch_failed(request, of(now));
                }
            }
        }
    }

    /// The server wants something.
    pub(super) fn on_server(&mut self, what: ToNode, server: &mut Server, now: Now) {
        match what {
            ToNode::Finish {
                token,
                storage,
                proposal,
            } => {
                let finish = Finish {
                    token,
                    storage,
                    body: proposal.body,
                    tid: proposal.tid,
                    max_oid: proposal.max_oid,
                    blobs: proposal.blobs,
                };
                self.node.finish(finish, of(now));
            }
            ToNode::Offer {
                token,
                storage,
                blobs,
            } => self.node.offer(token, storage, blobs, of(now)),
            ToNode::Withdraw { token } => self.node.withdraw(token),
            ToNode::Oids {
                token,
                storage,
                count,
            } => self.node.allocate_oids(token, storage, count, of(now)),
            ToNode::Confirm { token } => self.node.confirm(token, of(now)),
            ToNode::Pack {
                token,
                storage,
                until,
            } => self.node.order_pack(token, storage, until, of(now)),
            ToNode::Drained => self.node.on_drained(of(now)),
        }
        self.follow(server, now);
    }

    /// Does what the node wants, until it wants no more.
    pub(super) fn follow(&mut self, server: &mut Server, now: Now) {
        while let Some(output) = self.node.poll_output(of(now)) {
            match output {
                Output::Send(to, lane, method, args) => {
                    let to = to.map_or(To::All, To::One);
                    let sent = self.daemon.channel().send(to, lane, method, args);
                    if let Err(error) = sent {
                        // As if it had been lost on the way.
                        log::debug!("group {}: {method} is not sent: {error}", self.group);
                    }
                }
                Output::Disk(request) => {
                    if self.keeper.send(ToKeeper::Do(request)).is_err() {
                        self.stopped
                            .get_or_insert("the thread of the journal has ended".to_owned());
                    }
                }
                Output::Fetch { address, fetch } => {
                    let number = fetch.id;
                    let request = peer::Request::Fetch(fetch);
                    let id = self.peers.request(&address, request, now.mono);
                    self.asking.insert(id, number);
                }
                Output::Supply(id, fetched) => {
                    self.answer(id, Answer::Fetched(*fetched), now.mono);
                }
                Output::Refuse(id, why) => self.answer(id, refused(why), now.mono),
                Output::FetchBlobs { id, from, blobs } => {
                    let here = self.blobs.clone();
                    let from = from.iter().map(|it| self.peers.handle(it, CALL_TIMEOUT));
                    let from: Vec<_> = from.collect();
                    let begun = self.in_background("fetch-blobs", move || {
                        Ended::Blobs(id, copying::fetch_blobs(&here, &from, &blobs))
                    });
                    if let Err(why) = begun {
                        let not_fetched = NotFetched { why, gone: None };
                        self.node.on_blobs(id, Err(not_fetched), of(now));
                    }
                }
                Output::FetchOffered { id, from, blobs } => {
                    let here = self.blobs.clone();
                    let from = self.peers.handle(&from, CALL_TIMEOUT);
                    let begun = self.in_background("fetch-offered", move || {
                        Ended::Offered(id, copying::fetch_offered(&here, &from, id, &blobs))
                    });
                    if begun.is_err() {
                        let nothing = BTreeSet::new();
                        self.node.on_offer_fetched(id, &nothing, of(now));
                    }
                }
                Output::Lend(number, blobs) => self.blobs.lend(number, blobs),
                Output::TakeBack(number) => self.blobs.take_back(number),
                Output::Offered(token) => server.on_offered(token, now),
                Output::Copy(copy) => {
                    let fetcher = self.fetcher.clone();
                    let from = self.peers.handle(&copy.from, CALL_TIMEOUT);
                    let id = copy.id;
                    let begun = self.in_background("copy", move || {
                        Ended::Copied(id, fetcher.copy(from, &copy))
                    });
                    if let Err(why) = begun {
                        self.node.on_copied(id, Err(why), of(now));
                    }
                }
                Output::Serve(serving) => {
                    self.draining.on_serving(serving);
                    self.set_serving(server, now);
                }
                Output::Applied(applied) => {
                    for (applied, token) in applied {
                        server.extend_lineage(applied.epoch, applied.transaction.tid);
                        server.on_applied(&applied.storage, applied.transaction, token, now);
                    }
                }
                Output::BegunAnew => server.on_begun_anew(now),
                Output::Outcome(token, outcome) => server.on_outcome(token, outcome, now),
                Output::Oids(token, oids) => server.on_oids(token, oids, now),
                Output::Confirmed(token, is_sure) => server.on_confirmed(token, is_sure, now),
                Output::Data(data) => {
                    self.blobs.replace(data.blobs);
                    self.journal = Some(data.journal);
                    server.set_lineage(data.lineage);
                    for (storage, followed) in data.storages {
                        server.refollow(&storage, followed, now);
                    }
                }
                Output::Pack(packing) => self.packer.step(packing),
                Output::PackOrdered(storage, order) => {
                    self.on_pack_ordered(&storage, order, server);
                }
                Output::Refollow(storage, followed) => server.refollow(&storage, *followed, now),
                Output::Packed(end) => self.on_packed(end, server),
                Output::Answer(token, result) if self.draining.has_asked(token) => {
                    self.on_office_given(result, server, now);
                }
                Output::Answer(token, result) => {
                    self.on_order_answered(token, &result, server);
                    self.on_answer(token, result);
                }
                Output::Office(is_primary, epoch) => {
                    self.office.on_office(is_primary, epoch);
                    self.set_serving(server, now);
                }
                Output::Stop(why) => {
                    self.stopped.get_or_insert(why);
                }
            }
        }
        self.deadline = self.node.deadline();
        let follows = self.node.follows();
        if follows != self.followed {
            self.followed = follows;
            if follows.is_some() {
                server.on_other_primary(now);
            }
        }
    }

    fn answer(&mut self, id: u64, answer: Answer, now: Instant) {
        if let Some(id) = self.asked.remove(&id) {
            self.peers.answer(id, answer, now);
        }
    }

    /// Runs something that waits for the disk or for other nodes.
    ///
    /// # Errors
    ///
    /// There is no thread for it: nothing will come back.
    fn in_background(
        &self,
        name: &str,
        work: impl FnOnce() -> Ended + Send + 'static,
    ) -> Result<(), String> {
        let (ended, waker) = (self.ended_sender.clone(), self.waker.clone());
        let run = move || tell_ended(&ended, &waker, work());
        let begun = thread::Builder::new().name(name.to_owned()).spawn(run);
        begun.map(drop).map_err(|error| {
            log::error!("group {}: no thread for {name}: {error}", self.group);
            format!("no thread for it: {error}")
        })
    }

    fn set_serving(&self, server: &mut Server, now: Now) {
        server.set_serving(self.office.gate(self.draining.shown()), now);
    }

    /// What clients may do of what the node lets them.
    pub(super) fn serving(&self, serving: Serving) -> Serving {
        self.office.gate(self.draining.gate(serving))
    }

    /// What is heard of other nodes beside the daemon.
    pub(super) const fn paths(&self) -> &Paths {
        self.peers.paths()
    }

    /// What is heard of a node beside the daemon.
    pub(super) fn direct(&self, node: NodeId) -> Option<Heard> {
        self.paths().direct(node)
    }

    /// What is wrong, a line for each.
    pub(super) fn troubles(&self) -> Vec<String> {
        let paths = self.paths().troubles();
        self.office.trouble().into_iter().chain(paths).collect()
    }

    /// What the witnesses say.
    pub(super) fn witnesses(&self, now: Instant) -> Vec<WitnessStatus> {
        self.lookout.witnesses(now)
    }

    /// The daemon, and how things are with it.
    pub(super) fn describe_daemon(&mut self) -> String {
        self.daemon.describe()
    }

    /// Sends what waits.
    pub(super) fn flush(&mut self, now: Instant) {
        self.has_more |= self.daemon.flush(now);
        self.peers.flush(now);
        self.has_more |= self.peers.has_more();
    }

    pub(super) fn deadline(&mut self) -> Option<Instant> {
        let deadlines = [
            self.daemon.deadline(),
            self.peers.deadline(),
            self.deadline,
            self.draining.deadline(),
            Some(self.lookout.deadline()),
            self.office.deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    pub(super) fn on_deadline(&mut self, server: &mut Server, now: Now) {
        self.daemon.on_deadline(now.mono);
        self.peers.on_deadline(now.mono);
        self.lookout
            .on_deadline(&mut self.node, &mut self.peers, of(now));
        if self.deadline.is_some_and(|at| at <= now.mono) {
            self.node.on_deadline(of(now));
            self.follow(server, now);
        }
        self.look_at_draining(server, now);
        self.has_more = true;
    }

    pub(super) fn leave(&mut self, now: Instant) {
        self.packer.stop();
        self.daemon.leave(now);
        self.office.leave(self.stopped.is_some());
    }

    /// Whether the disk has something to do.
    pub(super) fn is_writing(&self) -> bool {
        self.node.is_writing() || self.node.is_at_a_pack()
    }

    /// Closes the journal, when the disk has nothing to do any more. `false` if that fails.
    pub(super) fn close(mut self) -> bool {
        // The second has a way to the first.
        drop((self.keeper, self.supplier));
        self.office.finish();
        self.packer.join();
        match self.keeper_thread.join() {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                log::error!("the journal was not closed in good order: {error}");
                false
            }
            Err(_) => {
                log::error!("the thread of the journal had panicked");
                false
            }
        }
    }

    fn tell(&self, incoming: &Incoming) {
        let group = &self.group;
        match incoming {
            Incoming::Transitional => log::info!("group {group}: members are being lost"),
            Incoming::View(view) => {
                let members: Vec<&str> = view.members.iter().map(|it| it.as_str()).collect();
                let members = members.join(", ");
                log::info!(
                    "group {group}: view {}: {members} ({})",
                    view.id,
                    view.cause
                );
            }
            // The session has said it.
            Incoming::Lost(why) => log::debug!("group {group}: the daemon is lost: {why}"),
            Incoming::Message(message) => {
                let (from, len) = (&message.from, message.what.len());
                log::trace!("group {group}: {len} bytes of {from} ({:?})", message.lane);
            }
            Incoming::Part(_) | Incoming::Cut { .. } => {}
        }
    }
}

/// The time as a replica wants it.
const fn of(now: Now) -> ReplicaNow {
    ReplicaNow {
        instant: now.mono,
        wall: now.wall,
    }
}

fn refused(why: &str) -> Answer {
    Answer::Refused(Refusal::new(RefusalKind::Busy, why))
}
