//! One node of a cluster: the [`Replica`] with what it needs to be one among others. It ties
//! [`crate::replica`], [`crate::group`] and [`crate::log_disk`], and knows no socket, file or
//! clock.
//!
//! ```text
//!   server     finishes, oids, confirms ─►┐             ┌─► outcomes, what was applied, Serving
//!   group      views, messages ──────────►│    Node     │─► messages
//!   peers      requests, answers ────────►│  (Replica)  │─► requests, answers, copies
//!   disk       what was done ────────────►│             │─► one request after the other
//!   operator   wishes ───────────────────►┘             └─► answers, notices
//! ```
//!
//! It is driven from outside: every call is followed by [`Node::poll_output`] until there is no
//! more.
//!
//! | part | for |
//! |---|---|
//! | `roster` | which member of the group is which node |
//! | `disk` | what the thread of the journal does |
//! | `disk_queue` | what it is to do next, and what comes of it |
//! | `found` | a node without a journal: founding a cluster, and becoming a part of one |
//! | `blobs` | proposals that wait for their blobs |
//! | `offers` | blobs that are fetched ahead of the proposals |
//! | `bulk` | what nodes get of each other beside the group |
//! | `pack` | packs that the log orders |
//! | `refresh` | data that are damaged, copied anew |
//! | `operator` | what people want, and want to know |
//! | `wishes` | when that has come about, and why not |

mod blobs;
mod bulk;
pub mod disk;
mod disk_queue;
mod found;
mod offers;
mod operator;
mod pack;
mod refresh;
pub mod roster;
#[cfg(test)]
mod tests;
mod wishes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use bulk::NotFetched;
pub use found::Copied;
pub use pack::PackEnd;
pub use wishes::Refused;

use blobs::Held;
use disk::{Data, Opened, Request};
use disk_queue::DiskQueue;
use found::Blank;
use offers::Offers;
use pack::Packs;
use refresh::Refresh;
use roster::{HELLO, Noticed, Peer, Roster};
use wishes::Wish;

use bytes::Bytes;

use crate::entry::{Body, Entry};
use crate::group::channel::{Delivered, Incoming};
use crate::group::message::Message as GroupMessage;
use crate::group::{Lane, MemberId, View};
use crate::ids::{Epoch, HistoryId, NodeId, Oid, Seq, Tid};
use crate::limits::{NOTICES_MAX, UNWRITTEN_MAX};
use crate::log_disk::{Applied, DiskAction, NamedBlob, PackOrder, Packing};
use crate::replica::Replica;
use crate::replica::event::{self, Action, Event, Notice, Now, Outcome, Serving, Token, Writers};
use crate::replica::message::{Content, Fetch, Fetched, Message, NodeKind};
use crate::replica::settings::StorageName;
use crate::storage::PackOptions;
use crate::storage::follow::Followed;
use crate::storage::transfer::BlobName;
use crate::value::Value;

/// Time between two checkpoints of a node that has applied something.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);

/// How often a node without room leaves its office, if it comes to it again.
const RESIGN_INTERVAL: Duration = Duration::from_secs(30);

/// How long is waited before what could not be applied is tried again.
const HOLD_RETRY: Duration = Duration::from_secs(1);

/// What a node is, by its configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// For the replica.
    pub replica: event::Options,
    /// The voters of a new cluster; of one that is there its log has them.
    pub voters: BTreeSet<NodeId>,
    /// The arbiter of a new cluster.
    pub arbiter: Option<NodeId>,
    /// The names of the storages. An arbiter has none.
    pub storages: Vec<StorageName>,
    /// How they are packed, if not as usual.
    pub packs: BTreeMap<StorageName, PackOptions>,
    /// Bytes of a transaction that goes through the group; a longer one is fetched by each node.
    pub ring_body_max: u64,
}

/// What is wanted of the world.
#[derive(Debug)]
pub enum Output {
    /// Send a message through the group; `None` is all.
    Send(Option<MemberId>, Lane, &'static str, Vec<Value>),
    /// Do something with the disk. The next comes when this is done: [`Node::on_disk`].
    Disk(Request),
    /// Nobody will answer what the node was asked so far: it has begun anew.
    BegunAnew,
    /// Ask another node for entries: [`Node::on_fetched`] or [`Node::on_fetch_failed`].
    Fetch {
        /// Its address
        address: String,
        /// The request
        fetch: Fetch,
    },
    /// The answer to a request, as the number of [`Node::on_requested`].
    Supply(u64, Box<Fetched>),
    /// A request is not answered.
    Refuse(u64, &'static str),
    /// Fetch blobs, from any of these, and put them into the journal: [`Node::on_blobs`].
    FetchBlobs {
        /// Comes back.
        id: u64,
        /// Where they may be, the best first.
        from: Vec<String>,
        /// Which
        blobs: Vec<NamedBlob>,
    },
    /// The same ahead of the entry that names them, from one node: [`Node::on_offer_fetched`]. They
    /// stay for that number.
    FetchOffered {
        /// Comes back.
        id: u64,
        /// Where they are.
        from: String,
        /// Which
        blobs: Vec<NamedBlob>,
    },
    /// Others may fetch these blobs, which are in these files.
    Lend(u64, Vec<(BlobName, PathBuf)>),
    /// They need not have what this number has lent any more.
    TakeBack(u64),
    /// For the server: the vote of a transaction goes on, whose blobs others were offered.
    Offered(Token),
    /// Copy a database beside ours: [`Node::on_copied`].
    Copy(Copy),
    /// For the server: what clients may do.
    Serve(Serving),
    /// For the server: what was applied, each with our client's token if it is ours.
    Applied(Vec<(Applied, Option<Token>)>),
    /// For the server: a finish that is not among these.
    Outcome(Token, Outcome),
    /// For the server: oids, or none are to be had here.
    Oids(Token, Option<Range<u64>>),
    /// For the server: what was committed when it was asked is applied, or nobody knows.
    Confirmed(Token, bool),
    /// For the server: these are the data files now, and these the tids of the history.
    Data(Data),
    /// Step a pack, which takes its time, until it waits for something or has ended:
    /// [`Node::on_pack_stepped`].
    Pack(Box<Packing>),
    /// For the server: a pack was ordered, perhaps long ago.
    PackOrdered(StorageName, PackOrder),
    /// For the server: this is the data file of a storage now, with the same transactions.
    Refollow(StorageName, Box<Followed>),
    /// For the server: a pack has ended here.
    Packed(PackEnd),
    /// The answer to an operator's wish: what was done, or why it was not, for people.
    Answer(Token, Result<String, Refused>),
    /// Something that happened: in office, or not any more, by this epoch.
    Office(bool, Epoch),
    /// The node must not go on.
    Stop(String),
}

/// A copy of a database that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Comes back.
    pub id: u64,
    /// The address of the node that has it.
    pub from: String,
    /// It must hold at least this entry.
    pub at_least: Seq,
    /// Old revisions are not wanted.
    pub newest_only: bool,
    /// Storages and journal are those of an arbiter: only the settings are wanted.
    pub settings_only: bool,
    /// What this node has may be damaged, and is believed only if it is the same there.
    pub is_anew: bool,
}

/// A transaction that is to be committed.
#[derive(Debug)]
pub struct Finish {
    /// Comes back.
    pub token: Token,
    /// Of which storage
    pub storage: StorageName,
    /// Its body
    pub body: Body,
    /// The tid that it must get, for copies of other databases.
    pub tid: Option<Tid>,
    /// The largest oid that it stores.
    pub max_oid: Option<Oid>,
    /// Files of its blobs.
    pub blobs: Vec<(BlobName, PathBuf)>,
}

/// See the module's page.
#[derive(Debug)]
pub struct Node {
    options: Options,
    roster: Roster,
    phase: Phase,
    disk: DiskQueue,
    /// Requests for entries that are not answered yet, by who asked and how.
    supplying: BTreeMap<(MemberId, u64), u64>,
    /// Finishes whose blobs are being moved.
    finishing: BTreeMap<u64, Finish>,
    held: Held,
    offers: Offers,
    packs: Packs,
    /// A copy that the replica wants is being made.
    copying: Option<u64>,
    refresh: Option<Refresh>,
    /// An entry with a blob that nobody has, and how often that was found in a row.
    gone: Option<(Seq, u32)>,
    /// Steps that follow from others, and fail at once.
    later: VecDeque<Event>,
    /// Of a new history, if one is to be made.
    new_history: HistoryId,
    /// Our name in the view that we are in.
    me: Option<MemberId>,
    serving: Serving,
    /// The last office that was told of, until its end is.
    office: Option<Epoch>,
    /// It comes last in elections.
    stands_aside: bool,
    /// What is committed cannot be applied for lack of room; when the office is left again.
    lacks_room: Option<Instant>,
    /// The blob that the next entry cannot be applied without is being fetched: under this number.
    mending: Option<u64>,
    /// Numbers what comes back.
    next_id: u64,
    notices: VecDeque<(Duration, String)>,
    failed: Option<String>,
    /// What administrators have asked for.
    wishes: BTreeMap<Token, Wish>,
    /// An administrator waits for a new history.
    renewal: Option<Token>,
    /// When it was told last that blobs cannot be fetched.
    not_fetched: Option<Instant>,
    /// What was to be applied and could not be, and when that is tried again.
    hold: Option<(Seq, Instant)>,
    checkpoint_at: Option<Instant>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
enum Phase {
    /// There is no journal.
    Blank(Blank),
    Running(Box<Replica>),
    /// It must not go on.
    Stopped,
}

impl Node {
    /// A node with this on its disk; None if there is no journal yet. `new_history` is random, and
    /// the name of a cluster that this node may found.
    pub fn new(
        options: Options,
        me: Peer,
        opened: Option<Opened>,
        new_history: HistoryId,
        now: Now,
    ) -> Self {
        let blank = Blank::new(now.instant);
        let mut node = Self {
            roster: Roster::new(me),
            options,
            phase: Phase::Blank(blank),
            disk: DiskQueue::default(),
            supplying: BTreeMap::new(),
            finishing: BTreeMap::new(),
            held: Held::default(),
            offers: Offers::default(),
            packs: Packs::default(),
            copying: None,
            refresh: None,
            gone: None,
            later: VecDeque::new(),
            new_history,
            me: None,
            serving: Serving::default(),
            office: None,
            stands_aside: false,
            lacks_room: None,
            mending: None,
            next_id: 0,
            notices: VecDeque::new(),
            failed: None,
            wishes: BTreeMap::new(),
            renewal: None,
            not_fetched: None,
            hold: None,
            checkpoint_at: None,
            outputs: VecDeque::new(),
        };
        if let Some(opened) = opened {
            node.run(opened, now);
        }
        node
    }

    /// There is a log: the replica begins with it.
    fn run(&mut self, opened: Opened, now: Now) {
        let Opened { start, data, past } = opened;
        self.roster.on_founded(start.history, start.me.disk, past);
        self.replace_data(data);
        if let Some(token) = self.renewal.take() {
            self.on_answer(token, Ok(()), now);
        }
        self.forget_packs();
        let replica = Replica::new(self.options.replica.clone(), start, now);
        self.phase = Phase::Running(Box::new(replica));
        if self.stands_aside || self.lacks_room.is_some() {
            self.tell_aside(now);
        }
        if let Some(view) = self.roster.view().cloned() {
            self.say_hello();
            self.tell_view(&view, now);
        }
    }

    fn replace_data(&mut self, mut data: Data) {
        self.set_pack_orders(std::mem::take(&mut data.packs));
        self.outputs.push_back(Output::Data(data));
    }

    fn say_hello(&mut self) {
        let hello = self.roster.hello();
        self.outputs
            .push_back(Output::Send(None, Lane::Control, HELLO, hello));
    }

    // -- what comes

    /// Something has come from the group.
    pub fn on_incoming(&mut self, incoming: Incoming, me: Option<&MemberId>, now: Now) {
        match incoming {
            Incoming::View(view) => {
                self.me = me.cloned();
                self.held.clear();
                self.roster.on_view(&view);
                self.say_hello();
                self.on_offers_view();
                self.tell_view(&view, now);
            }
            Incoming::Lost(_) => {
                self.me = None;
                self.held.clear();
                self.roster.on_lost();
                self.on_offers_view();
                self.step(Event::Lost, now);
            }
            Incoming::Message(message) => self.on_message(message, now),
            // What is sent here comes whole, or not at all: then it is fetched.
            Incoming::Transitional | Incoming::Part(_) | Incoming::Cut { .. } => {}
        }
    }

    fn on_message(&mut self, message: Delivered<Bytes>, now: Now) {
        let Ok(said) = GroupMessage::decode(&message.what) else {
            return;
        };
        let from = message.from;
        if said.method == HELLO {
            let me = self.me.clone();
            let noticed = self.roster.on_hello(&from, &said, me.as_ref());
            self.on_noticed(noticed, now);
            self.look_at_past(&from);
            self.look_at_founding(now);
            return;
        }
        if self.on_offer_message(&from, &said) {
            return;
        }
        match Message::decode(&said) {
            Ok(Some(message)) => self.take(from, message, now),
            Ok(None) => {}
            Err(error) => log::warn!("{from}: a message is not understood: {error}"),
        }
    }

    /// A message of a replica. A proposal whose blobs are not here waits for them.
    fn take(&mut self, from: MemberId, message: Message, now: Now) {
        if let Phase::Blank(blank) = &mut self.phase {
            return blank.on_message(from, &message);
        }
        if let Content::Propose { entry, .. } = &message.content
            && self.me.as_ref() != Some(&from)
            // It keeps none of them.
            && self.roster.me().kind != NodeKind::Arbiter
        {
            // It is fetched later, as one that was lost on its way.
            if self.disk.is_crowded() || self.held.len() >= UNWRITTEN_MAX {
                return;
            }
            let has_blobs = blobs::have_blobs(std::slice::from_ref(entry));
            if has_blobs || self.held.is_waiting_for(&from) {
                let entry = entry.clone();
                let id = self.number();
                let is_first = self.held.hold(id, from, message, has_blobs);
                if is_first {
                    self.find_missing(id, vec![entry]);
                }
                return;
            }
        }
        self.step(Event::Message { from, message }, now);
    }

    fn tell_view(&mut self, view: &View, now: Now) {
        let Some(me) = self.me.clone() else {
            return;
        };
        let event = Event::View {
            id: view.id,
            members: view.members.clone(),
            me,
        };
        self.step(event, now);
    }

    /// A node that has begun a new history, as a loss was accepted, and whose past is ours, is the
    /// cluster now: what we have is not to be served any more.
    fn look_at_past(&mut self, from: &MemberId) {
        let Some(peer) = self.roster.peer(from) else {
            return;
        };
        let me = self.roster.me();
        let is_future = |ours: HistoryId| peer.past.contains(&ours) && peer.history != Some(ours);
        if me.history.is_some_and(is_future) && !me.past.iter().any(|it| Some(*it) == peer.history)
        {
            let why = format!(
                "a loss was accepted at {}, which has begun a new history: the data of this node \
                 are of the old one. Move its data file and its journal away, so that the new ones \
                 can be copied",
                peer.name
            );
            self.stop(why);
        }
    }

    /// A message in our turn; [`Noticed`] is for the log.
    fn on_noticed(&mut self, noticed: Option<Noticed>, now: Now) {
        match noticed {
            None => {}
            Some(Noticed::Complete) => {
                let peers = self.roster.peers();
                let names: Vec<String> = peers
                    .map(|(_, peer)| format!("{} (version {})", peer.name, peer.version))
                    .collect();
                log::info!("group: here are {}", names.join(", "));
            }
            Some(Noticed::Namesake(member)) => self.tell(
                format!("{member} has the name of this node; one of them needs another"),
                now,
            ),
            Some(Noticed::Foreign(member, what)) => {
                self.tell(format!("{member} is not understood ({what})"), now);
            }
        }
    }

    /// Something for the log and the status.
    pub fn tell(&mut self, text: String, now: Now) {
        log::warn!("{text}");
        if self.notices.len() >= NOTICES_MAX {
            self.notices.pop_front();
        }
        self.notices.push_back((now.wall, text));
    }

    fn number(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Puts blobs where the proposals that name them wait for them.
    fn find_missing(&mut self, id: u64, entries: Vec<Entry>) {
        self.enqueue(Request::FindMissing { id, entries });
    }

    // -- the replica

    fn actions_of(&mut self, event: Event, now: Now) -> Vec<Action> {
        match &mut self.phase {
            Phase::Running(replica) => replica.step(event, now),
            Phase::Blank(_) | Phase::Stopped => Vec::new(),
        }
    }

    fn step(&mut self, event: Event, now: Now) {
        for action in self.actions_of(event, now) {
            self.act(action, now);
        }
        self.look_at_office(now);
    }

    /// An office whose renewal came to nothing is over, of which the replica tells no more than
    /// that nobody may write here.
    fn look_at_office(&mut self, now: Now) {
        if self.serving.writers == Writers::Closed
            && !self.is_primary()
            && let Some(epoch) = self.office.take()
        {
            self.tell(format!("not primary any more, as of epoch {epoch}"), now);
            self.outputs.push_back(Output::Office(false, epoch));
        }
    }

    fn act(&mut self, action: Action, now: Now) {
        let action = match DiskAction::of(action) {
            Ok(action) => return self.enqueue(Request::Run(action)),
            Err(action) => *action,
        };
        match action {
            Action::SendAll(message) => self.send(None, &message),
            Action::SendOne(to, message) => self.send(Some(to), &message),
            Action::Fetch { to, fetch } => {
                let id = fetch.id;
                match self.address_of(&to) {
                    Some(address) => self.fetch_entries(address, fetch),
                    None => self.later.push_back(Event::FetchFailed { id }),
                }
            }
            Action::Supply {
                to,
                answer,
                entries,
            } => self.supply(&to, answer, entries),
            Action::Copy {
                id,
                from,
                at_least,
                newest_only,
            } => match self.address_of(&from) {
                Some(from) if self.makes_way(now) => {
                    self.copying = Some(id);
                    self.outputs.push_back(Output::Copy(Copy {
                        id,
                        from,
                        at_least,
                        newest_only,
                        settings_only: false,
                        is_anew: false,
                    }));
                }
                _ => self.later.push_back(Event::FetchFailed { id }),
            },
            Action::Reply { token, outcome } => {
                self.outputs.push_back(Output::Outcome(token, outcome));
            }
            Action::Oids { token, oids } => self.outputs.push_back(Output::Oids(token, oids)),
            Action::Confirmed { token, is_sure } => {
                self.outputs.push_back(Output::Confirmed(token, is_sure));
            }
            Action::Serve(serving) => {
                self.serving = serving;
                self.outputs.push_back(Output::Serve(serving));
            }
            Action::Pack { storage, pack } => self.begin_pack(storage, pack),
            Action::Answer { token, result } => self.on_answer(token, result, now),
            Action::Tell(notice) => self.on_notice(&notice, now),
            Action::Stop(fatal) => self.stop(fatal.to_string()),
            // Those of the disk.
            Action::Append(_)
            | Action::Promise(_)
            | Action::Cut { .. }
            | Action::Apply { .. }
            | Action::Record(..) => {}
        }
    }

    fn send(&mut self, to: Option<MemberId>, message: &Message) {
        if let Content::Propose { entry, .. } = &message.content
            && entry.header().body_len > self.options.ring_body_max
        {
            // Each fetches it, directly.
            return;
        }
        let (method, args) = message.encode();
        let lane = message.content.lane();
        self.outputs.push_back(Output::Send(to, lane, method, args));
    }

    fn address_of(&self, member: &MemberId) -> Option<String> {
        let peer = self.roster.peer(member)?;
        (!peer.address.is_empty()).then(|| peer.address.clone())
    }

    fn on_notice(&mut self, notice: &Notice, now: Now) {
        match notice {
            Notice::Promoted(epoch) => {
                self.tell(format!("primary of epoch {epoch}"), now);
                self.office = Some(*epoch);
                self.outputs.push_back(Output::Office(true, *epoch));
            }
            Notice::Demoted(epoch) => {
                self.tell(format!("not primary any more, as of epoch {epoch}"), now);
                self.office = None;
                self.outputs.push_back(Output::Office(false, *epoch));
            }
            // It asks again and again, and gets none now.
            Notice::Copying if self.is_refreshing() => {}
            notice => self.tell(notice_text(notice), now),
        }
    }

    fn stop(&mut self, why: String) {
        self.phase = Phase::Stopped;
        self.failed = Some(why.clone());
        self.outputs.push_back(Output::Serve(Serving::default()));
        self.outputs.push_back(Output::Stop(why));
    }

    // -- the server

    /// A transaction is to be committed.
    pub fn finish(&mut self, mut finish: Finish, now: Now) {
        if finish.blobs.is_empty() {
            return self.propose(finish, now);
        }
        let (id, blobs) = (self.number(), std::mem::take(&mut finish.blobs));
        self.finishing.insert(id, finish);
        self.enqueue(Request::TakeBlobs { id, blobs });
    }

    fn propose(&mut self, finish: Finish, now: Now) {
        let Finish {
            token,
            storage,
            body,
            tid,
            max_oid,
            ..
        } = finish;
        let event = Event::Finish {
            token,
            body,
            tid,
            oids: max_oid
                .into_iter()
                .map(|oid| (storage.clone(), oid))
                .collect(),
        };
        if matches!(self.phase, Phase::Running(_)) {
            self.step(event, now);
        } else {
            self.outputs
                .push_back(Output::Outcome(token, Outcome::Lost));
        }
    }

    /// Oids are wanted.
    pub fn allocate_oids(&mut self, token: Token, storage: StorageName, count: u64, now: Now) {
        if !matches!(self.phase, Phase::Running(_)) {
            return self.outputs.push_back(Output::Oids(token, None));
        }
        let event = Event::AllocateOids {
            token,
            storage,
            count,
        };
        self.step(event, now);
    }

    /// What is committed by now has to be known.
    pub fn confirm(&mut self, token: Token, now: Now) {
        if !matches!(self.phase, Phase::Running(_)) {
            return self.outputs.push_back(Output::Confirmed(token, false));
        }
        self.step(Event::Confirm { token }, now);
    }

    /// No transaction is voted and not finished.
    pub fn on_drained(&mut self, now: Now) {
        self.step(Event::Drained, now);
    }

    // -- time

    /// When [`Self::on_deadline`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let hold = self.hold.map(|(_, at)| at);
        let own = match &self.phase {
            Phase::Running(replica) => replica.deadline(),
            Phase::Blank(blank) => blank.deadline(),
            Phase::Stopped => None,
        };
        [
            own,
            hold,
            self.disk.deadline(),
            self.checkpoint_at,
            self.offers_deadline(),
            self.wishes_deadline(),
            self.refresh_deadline(),
            self.packs_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The deadline has come, or may have.
    pub fn on_deadline(&mut self, now: Now) {
        self.look_at_disk(now);
        self.send_fetch();
        if let Some((through, at)) = self.hold
            && at <= now.instant
        {
            self.hold = None;
            self.enqueue(Request::Run(DiskAction::Apply { through }));
        }
        if self.checkpoint_at.is_some_and(|at| at <= now.instant) {
            self.checkpoint_at = None;
            self.enqueue(Request::Checkpoint);
        }
        self.look_at_founding(now);
        self.look_at_offers(now);
        self.look_at_refresh(now);
        self.look_at_packs(now);
        if let Phase::Running(replica) = &self.phase
            && replica.deadline().is_some_and(|at| at <= now.instant)
        {
            self.step(Event::Deadline, now);
        }
    }

    /// What is wanted next. To be drained after every call.
    pub fn poll_output(&mut self, now: Now) -> Option<Output> {
        // What a step led to that fails at once.
        while let Some(event) = self.later.pop_front() {
            self.step(event, now);
        }
        if self.outputs.is_empty() {
            self.look_at_wishes(now);
        }
        let output = self.outputs.pop_front();
        if let Some(Output::Disk(request)) = &output {
            self.disk.on_begun(request, now.instant);
        }
        output
    }

    /// The disk does something, or is to.
    pub fn is_writing(&self) -> bool {
        self.disk.is_writing()
    }
}

fn notice_text(notice: &Notice) -> String {
    match notice {
        Notice::Promoted(epoch) => format!("primary of epoch {epoch}"),
        Notice::Demoted(epoch) => format!("not primary any more, as of epoch {epoch}"),
        Notice::Rewound { first, last } => format!(
            "entries {first} to {last} were never committed, and are replaced; they are kept in a \
             file diverged-* of the journal"
        ),
        Notice::OtherHistory(node, history) => {
            format!("{node} has data of another history ({history}): it is not heeded")
        }
        Notice::Namesakes(node) => format!("two members go by the name {node}"),
        Notice::OtherDisk(voter) => format!(
            "{} has another disk ({}) than the voter of that name: it is not counted",
            voter.node, voter.disk
        ),
        Notice::ClockOff(by) => format!(
            "the clock of this machine differs by {:.1} s from that of most others",
            by.as_secs_f64()
        ),
        Notice::Copying => {
            "a copy of the database is made: what this node lacks is in no journal any more"
                .to_owned()
        }
        Notice::NoRoom => {
            "entries cannot be appended to the journal: this node follows nobody for a moment"
                .to_owned()
        }
    }
}
