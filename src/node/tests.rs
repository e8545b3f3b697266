//! Nodes with disks in memory and a group that is perfect, in one thread.

mod arbiter;
mod offers;
mod packs;
mod refresh;
mod room;
mod slow_disk;

use std::path::PathBuf;
use std::sync::Arc;

use super::disk::Keeper;
use super::*;
use crate::group::Audience;
use crate::group::ViewId;
use crate::group::channel::Delivered;
use crate::group::message::encode;
use crate::ids::DiskId;
use crate::log_disk::{Directories, Options as DiskOptions, StoragePaths, copy_anew, copy_beside};
use crate::replica::event::{MemberChange, Writers};
use crate::replica::message::{Fetched, NodeKind};
use crate::storage::disk::{Disk, OpenMode};
use crate::storage::memory::MemoryDisk;
use crate::storage::pack_fed::FedStep;
use crate::storage::transfer::{Record, Transfer};

const NO_GC: PackOptions = PackOptions {
    gc: false,
    keep_old: true,
};

const LEASE: Duration = Duration::from_secs(2);

/// A node with its disk. A process that is down has none.
struct One {
    name: &'static str,
    voters: Vec<&'static str>,
    arbiter: Option<&'static str>,
    kind: NodeKind,
    disk: Arc<dyn Disk>,
    disk_number: u8,
    running: Option<(Node, Keeper)>,
    /// What its server was told.
    serving: Serving,
    applied: Vec<(Seq, Option<Token>)>,
    answers: Vec<Result<String, Refused>>,
    stopped: Option<String>,
    /// Packs that wait for being stepped on, if they are not at once.
    packing: Option<Vec<Packing>>,
    packed: Vec<PackEnd>,
    /// Copies that wait for being made, if they are not at once.
    copying: Option<Vec<Copy>>,
    /// All that nothing is done about here.
    others: Vec<Output>,
}

struct Many {
    nodes: Vec<One>,
    now: Now,
    views: u8,
    /// A node that hears of nobody.
    cut_off: Option<usize>,
    /// A member that says nothing.
    silent: Option<&'static str>,
    /// Bodies that are on their way: from whom, to whom.
    messages: VecDeque<(usize, Option<MemberId>, Lane, Bytes)>,
}

fn directories(kind: NodeKind) -> Directories {
    let paths = StoragePaths {
        data: PathBuf::from("Data.fs"),
        blobs: Some(PathBuf::from("blobs")),
    };
    let has_data = kind != NodeKind::Arbiter;
    Directories {
        journal: PathBuf::from("journal"),
        storages: has_data
            .then(|| ("1".to_owned(), paths))
            .into_iter()
            .collect(),
    }
}

const DISK_OPTIONS: DiskOptions = DiskOptions {
    segment_len: 1 << 16,
    window_len: 1 << 16,
    checkpoint_len: 1 << 16,
};

fn member(name: &str) -> MemberId {
    MemberId::new(&format!("#{name}"))
}

impl Many {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way"
    )]
    fn new() -> Self {
        Self {
            nodes: Vec::new(),
            now: Now {
                instant: Instant::now(),
                wall: Duration::from_secs(1_700_000_000),
            },
            views: 0,
            cut_off: None,
            silent: None,
            messages: VecDeque::new(),
        }
    }

    fn add(&mut self, name: &'static str, kind: NodeKind, voters: &[&'static str]) -> usize {
        self.nodes.push(One {
            name,
            voters: voters.to_vec(),
            arbiter: None,
            kind,
            disk: Arc::new(MemoryDisk::new()),
            disk_number: 1,
            running: None,
            serving: Serving::default(),
            applied: Vec::new(),
            answers: Vec::new(),
            stopped: None,
            packing: None,
            packed: Vec::new(),
            copying: None,
            others: Vec::new(),
        });
        self.nodes.len() - 1
    }

    /// Three voters, and all that there are.
    fn three() -> Self {
        let mut many = Self::new();
        for name in ["a", "b", "c"] {
            many.add(name, NodeKind::Data, &["a", "b", "c"]);
        }
        many
    }

    /// Starts a process. It is in no view before [`Self::view`].
    fn start(&mut self, at: usize) {
        let now = self.now;
        let one = &mut self.nodes[at];
        let name = NodeId::new(one.name).unwrap();
        let directories = directories(one.kind);
        let (keeper, opened) = Keeper::open(one.disk.clone(), directories, DISK_OPTIONS).unwrap();
        let data = one.disk.open("Data.fs".as_ref(), OpenMode::ReadRegular);
        let me = Peer {
            disk: DiskId([name.to_bytes()[0] + one.disk_number; 16]),
            kind: one.kind,
            has_data: data.is_ok_and(|file| file.len().unwrap() > 4),
            address: format!("{}:8102", one.name),
            ..Peer::blank(name, 1, "0.1".to_owned())
        };
        let options = Options {
            replica: event::Options {
                kind: one.kind,
                site: "main".to_owned(),
                priority: 10,
                copies_newest_only: false,
                leads_without_history: false,
                lease: LEASE,
            },
            voters: one.voters.iter().filter_map(|it| NodeId::new(it)).collect(),
            arbiter: one.arbiter.and_then(NodeId::new),
            storages: vec!["1".to_owned()],
            // The objects here are no pickles.
            packs: [("1".to_owned(), NO_GC)].into(),
            ring_body_max: 1000,
        };
        let history = HistoryId([name.to_bytes()[0]; 16]);
        let node = Node::new(options, me, opened, history, now);
        one.running = Some((node, keeper));
        self.follow(at);
    }

    fn start_all(&mut self) {
        for at in 0..self.nodes.len() {
            self.start(at);
        }
        self.view();
    }

    /// `kill -9`
    fn kill(&mut self, at: usize) {
        self.nodes[at].running = None;
        self.nodes[at].serving = Serving::default();
        self.view();
    }

    /// All that run are in a new view.
    fn view(&mut self) {
        self.views += 1;
        let cut_off = self.cut_off.map(|at| self.nodes[at].name);
        let running = self.nodes.iter().filter(|one| one.running.is_some());
        let here = running.filter(|one| Some(one.name) != cut_off);
        let members = here.map(|one| one.name).chain(self.silent);
        let members: Vec<MemberId> = members.map(member).collect();
        let view = View {
            id: ViewId([self.views; 20]),
            together: members.clone(),
            members,
            cause: "test",
        };
        self.messages.clear();
        for at in 0..self.nodes.len() {
            let me = member(self.nodes[at].name);
            let now = self.now;
            if self.cut_off == Some(at) {
                let (node, _) = self.nodes[at].running.as_mut().unwrap();
                node.on_incoming(Incoming::Lost("cut off".to_owned()), None, now);
                self.follow(at);
                continue;
            }
            if let Some((node, _)) = &mut self.nodes[at].running {
                node.on_incoming(Incoming::View(view.clone()), Some(&me), now);
                self.follow(at);
            }
        }
        self.settle();
    }

    /// Does what a node wants, until it wants no more.
    fn follow(&mut self, at: usize) {
        let now = self.now;
        while let Some((node, keeper)) = &mut self.nodes[at].running
            && let Some(output) = node.poll_output(now)
        {
            match output {
                Output::Send(to, lane, method, args) => {
                    let body = encode(method, args).concat().into();
                    self.messages.push_back((at, to, lane, body));
                }
                Output::Disk(request) => {
                    let done = keeper.perform(request);
                    node.on_disk(done, now);
                }
                Output::Fetch { address, fetch } => {
                    let id = fetch.id;
                    match self.fetch(&address, fetch) {
                        Some(fetched) => self.node(at).on_fetched(fetched, now),
                        None => self.node(at).on_fetch_failed(id, now),
                    }
                }
                Output::Copy(copy) => match &mut self.nodes[at].copying {
                    Some(waiting) => waiting.push(copy),
                    None => {
                        let copied = self.copy(at, &copy);
                        self.node(at).on_copied(copy.id, copied, now);
                    }
                },
                Output::Serve(serving) => self.nodes[at].serving = serving,
                Output::Applied(applied) => {
                    let applied = applied.into_iter().map(|(it, token)| (it.seq, token));
                    self.nodes[at].applied.extend(applied);
                }
                Output::Answer(_, result) => self.nodes[at].answers.push(result),
                Output::Stop(why) => self.nodes[at].stopped = Some(why),
                Output::Pack(packing) => match &mut self.nodes[at].packing {
                    Some(waiting) => waiting.push(*packing),
                    None => self.step_pack(at, packing),
                },
                Output::Packed(end) => self.nodes[at].packed.push(end),
                Output::Supply(..) | Output::Refuse(..) => panic!("nobody has asked"),
                other => self.nodes[at].others.push(other),
            }
        }
    }

    /// A thread steps a pack until that waits for something.
    fn step_pack(&mut self, at: usize, mut packing: Box<Packing>) {
        let result = loop {
            match packing.step() {
                Ok(FedStep::More) => {}
                result => break result,
            }
        };
        self.node(at).on_pack_stepped(packing, result);
    }

    /// The same, for those that wait for it at a node.
    fn step_packs(&mut self, at: usize) {
        let waiting = self.nodes[at].packing.as_mut().unwrap();
        for packing in std::mem::take(waiting) {
            self.step_pack(at, Box::new(packing));
            self.follow(at);
        }
    }

    fn node(&mut self, at: usize) -> &mut Node {
        &mut self.nodes[at].running.as_mut().unwrap().0
    }

    fn at_address(&self, address: &str) -> Option<usize> {
        let (name, _) = address.split_once(':')?;
        let is_it = |one: &One| one.name == name && one.running.is_some();
        self.nodes.iter().position(is_it)
    }

    fn fetch(&mut self, address: &str, fetch: Fetch) -> Option<Fetched> {
        let at = self.at_address(address)?;
        let now = self.now;
        self.node(at).on_requested(7, fetch, now);
        let mut supplied = None;
        while let Some((node, keeper)) = &mut self.nodes[at].running
            && let Some(output) = node.poll_output(now)
        {
            match output {
                Output::Supply(7, fetched) => supplied = Some(*fetched),
                Output::Disk(request) => {
                    let done = keeper.perform(request);
                    node.on_disk(done, now);
                }
                Output::Send(to, lane, method, args) => {
                    let body = encode(method, args).concat().into();
                    self.messages.push_back((at, to, lane, body));
                }
                Output::Refuse(..) => {}
                other => panic!("{other:?} by a request"),
            }
        }
        supplied
    }

    fn copy(&mut self, at: usize, copy: &Copy) -> Result<Copied, String> {
        let from = self.at_address(&copy.from).ok_or("nobody is there")?;
        let (_, keeper) = self.nodes[from].running.as_mut().unwrap();
        let snapshot = keeper.snapshot()?;
        if copy.settings_only {
            let manifest = crate::log_disk::CopySource::manifest(&snapshot);
            let settings = manifest.settings().clone();
            return Ok(Copied::Settings(manifest.history(), Box::new(settings)));
        }
        let one = &self.nodes[at];
        let (directories, mut goes_on) = (directories(one.kind), |_, _| true);
        let beside = match copy.is_anew {
            true => copy_anew(&one.disk, &directories, &snapshot, &mut goes_on),
            false => copy_beside(&one.disk, &directories, &snapshot, &mut goes_on),
        };
        let beside = beside.map_err(|error| error.to_string())?;
        Ok(Copied::Beside(Box::new(beside)))
    }

    /// Delivers what is on its way, and what follows.
    fn settle(&mut self) {
        while let Some((from, to, lane, body)) = self.messages.pop_front() {
            let sender = member(self.nodes[from].name);
            for at in 0..self.nodes.len() {
                let me = member(self.nodes[at].name);
                let is_for_it = to.as_ref().is_none_or(|to| *to == me);
                let now = self.now;
                let Some((node, _)) = &mut self.nodes[at].running else {
                    continue;
                };
                if !is_for_it || self.cut_off == Some(at) {
                    continue;
                }
                let message = Incoming::Message(Delivered {
                    from: sender.clone(),
                    lane,
                    audience: Audience::All,
                    what: body.clone(),
                });
                node.on_incoming(message, Some(&me), now);
                self.follow(at);
            }
        }
    }

    /// Time passes.
    fn pass(&mut self, time: Duration) {
        let until = self.now.instant + time;
        while self.now.instant < until {
            let step = Duration::from_millis(50);
            self.now.instant += step;
            self.now.wall += step;
            let now = self.now;
            for at in 0..self.nodes.len() {
                if let Some((node, _)) = &mut self.nodes[at].running {
                    node.on_deadline(now);
                    self.follow(at);
                }
            }
            self.settle();
        }
    }

    /// The node that is open for writers.
    fn primary(&self) -> usize {
        let open = |one: &&One| one.serving.writers == Writers::Open;
        let names: Vec<&str> = self.nodes.iter().filter(open).map(|one| one.name).collect();
        assert_eq!(names.len(), 1, "open are {names:?}");
        let is_it = |one: &One| one.serving.writers == Writers::Open;
        self.nodes.iter().position(is_it).unwrap()
    }

    /// Commits a transaction; it is applied where it was begun when this returns.
    fn commit(&mut self, token: u64, len: usize) -> Seq {
        let at = self.primary();
        let data = vec![token as u8; len];
        let finish = Self::finish_of(token, data, Vec::new());
        let now = self.now;
        self.node(at).finish(finish, now);
        self.follow(at);
        self.settle();
        self.pass(Duration::from_millis(500));
        let applied = &self.nodes[at].applied;
        let found = applied.iter().find(|it| it.1 == Some(Token(token)));
        found.unwrap_or_else(|| panic!("{token} is not applied")).0
    }

    /// A transaction with an object of that number.
    fn finish_of(token: u64, data: Vec<u8>, blobs: Vec<(BlobName, PathBuf)>) -> Finish {
        let transfer = Transfer {
            storage: "1".to_owned(),
            status: b' ',
            user: Bytes::new(),
            description: Bytes::new(),
            extension: Bytes::new(),
            records: vec![Record {
                oid: Oid(token),
                data: Some(data.into()),
                same_as: None,
            }],
            blobs: blobs.iter().map(|(name, _)| *name).collect(),
        };
        Finish {
            token: Token(token),
            storage: "1".to_owned(),
            body: Body::new(transfer.encode().unwrap()).unwrap(),
            tid: None,
            max_oid: None,
            blobs,
        }
    }

    /// What was answered, in words.
    fn said(&self, at: usize) -> Vec<String> {
        let answers = self.nodes[at].answers.iter();
        let said = answers.map(|it| match it {
            Ok(done) => done.clone(),
            Err(refused) => format!("no: {}", refused.text),
        });
        said.collect()
    }

    fn history(&self, at: usize) -> Option<HistoryId> {
        let (node, _) = self.nodes[at].running.as_ref()?;
        node.overview().map(|it| it.history)
    }

    fn applied(&self, at: usize) -> Seq {
        let (node, _) = self.nodes[at].running.as_ref().unwrap();
        node.overview().unwrap().applied
    }
}

#[test]
fn three_that_are_new_found_a_cluster_and_it_commits() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    let histories: Vec<_> = (0..3).map(|at| many.history(at)).collect();
    assert_eq!(histories, [Some(HistoryId([b'a'; 16])); 3]);
    let seq = many.commit(1, 10);
    many.pass(LEASE);
    for at in 0..3 {
        assert_eq!(many.applied(at), seq, "{}", many.nodes[at].name);
    }
}

#[test]
fn nobody_founds_a_cluster_before_all_voters_are_here() {
    let mut many = Many::three();
    many.start(0);
    many.start(1);
    many.view();
    many.pass(5 * LEASE);
    assert_eq!(many.history(0), None);
    let state = many.node(0).state();
    assert!(state.contains("missing: c"), "{state}");
    many.start(2);
    many.view();
    many.pass(3 * LEASE);
    many.primary();
}

#[test]
fn who_has_data_founds_and_of_two_nobody() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    many.commit(1, 10);
    many.pass(LEASE);
    let data = many.nodes[1].disk.read("Data.fs".as_ref()).unwrap();
    assert!(data.len() > 80);
    let put = |one: &mut One| {
        one.disk = Arc::new(MemoryDisk::new());
        one.disk.replace("Data.fs".as_ref(), &[&data]).unwrap();
    };
    let mut many = Many::three();
    put(&mut many.nodes[1]);
    many.start_all();
    many.pass(3 * LEASE);
    assert_eq!(many.history(0), Some(HistoryId([b'b'; 16])));
    many.commit(2, 10);
    many.pass(LEASE);
    let copied = many.nodes[2].disk.read("Data.fs".as_ref()).unwrap();
    // What was applied and not settled in the old cluster is cut: it was in its journal. But the
    // beginning is the same.
    assert!(copied.len() > 80 && copied.windows(10).any(|it| it == [2; 10]));

    let mut many = Many::three();
    put(&mut many.nodes[1]);
    put(&mut many.nodes[2]);
    many.start_all();
    many.pass(3 * LEASE);
    assert_eq!(many.history(0), None);
    let state = many.node(0).state();
    assert!(state.contains("b and c have data files each"), "{state}");
}

#[test]
fn another_takes_over_and_who_was_away_catches_up() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    many.commit(1, 10);
    let old = many.primary();
    many.kill(old);
    many.pass(3 * LEASE);
    assert_ne!(many.primary(), old);
    let mut last = Seq::ZERO;
    for token in 2..6 {
        last = many.commit(token, 10);
    }
    many.start(old);
    many.view();
    many.pass(3 * LEASE);
    assert_eq!(many.applied(old), last);
    assert_eq!(many.nodes[old].serving.writers, Writers::Closed);
}

#[test]
fn a_transaction_that_is_too_long_for_the_group_is_fetched() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    let seq = many.commit(1, 5000);
    many.pass(LEASE);
    for at in 0..3 {
        assert_eq!(many.applied(at), seq);
    }
}

#[test]
fn a_node_whose_disk_was_lost_gets_a_copy_and_is_not_counted() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    many.commit(1, 10);
    let lost = (many.primary() + 1) % 3;
    many.kill(lost);
    let last = many.commit(2, 10);
    many.nodes[lost].disk = Arc::new(MemoryDisk::new());
    many.nodes[lost].disk_number = 2;
    many.start(lost);
    many.view();
    many.pass(4 * LEASE);
    assert_eq!(many.applied(lost), last);
    let (node, _) = many.nodes[lost].running.as_ref().unwrap();
    let overview = node.overview().unwrap();
    assert!(!overview.settings.members.is_voter(&overview.me));
    // It is counted again when an administrator says so.
    let primary = many.primary();
    let (now, name) = (many.now, NodeId::new(many.nodes[lost].name).unwrap());
    let remove = MemberChange::Remove(name);
    many.node(primary).change_members(Token(50), remove, now);
    many.follow(primary);
    many.pass(LEASE);
    let now = many.now;
    let add = MemberChange::Add(name);
    many.node(primary).change_members(Token(51), add, now);
    many.follow(primary);
    many.pass(LEASE);
    let said = many.said(primary);
    assert!(
        said[0].contains("is not counted any more; voters are "),
        "{said:?}"
    );
    assert!(
        said[1].ends_with("is counted; voters are a, b, c"),
        "{said:?}"
    );
    let notices: Vec<&String> = many.node(primary).notices().map(|it| &it.1).collect();
    let even = notices
        .iter()
        .filter(|it| it.contains("of 2 voters none may be away"));
    assert_eq!(even.count(), 1, "{notices:?}");
}

#[test]
fn a_loss_that_is_accepted_begins_a_new_history() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    many.commit(1, 10);
    let left = (many.primary() + 1) % 3;
    for at in (0..3).filter(|at| *at != left) {
        many.kill(at);
    }
    many.pass(3 * LEASE);
    let now = many.now;
    many.node(left)
        .promote(Token(9), false, HistoryId([9; 16]), now);
    many.follow(left);
    let said = many.said(left);
    assert!(said[0].contains("no: more than half of the voters have to be here; missing: "));
    many.node(left)
        .promote(Token(10), true, HistoryId([9; 16]), now);
    many.follow(left);
    many.pass(3 * LEASE);
    let name = many.nodes[left].name;
    let said = many.said(left);
    assert!(
        said[1].starts_with(&format!("{name} is primary of epoch ")),
        "{said:?}"
    );
    assert_eq!(many.primary(), left);
    // What the server was to be told is told by nobody now.
    let others = &many.nodes[left].others;
    let has_begun = |it: &&Output| matches!(it, Output::BegunAnew);
    assert_eq!(others.iter().filter(has_begun).count(), 1);
    assert_eq!(many.history(left), Some(HistoryId([9; 16])));
    many.commit(2, 10);
    // The others are of the old one: a majority of that, which must not go on.
    for at in (0..3).filter(|at| *at != left) {
        many.start(at);
    }
    many.view();
    many.pass(5 * LEASE);
    assert_eq!(many.primary(), left);
    for at in (0..3).filter(|at| *at != left) {
        let why = many.nodes[at].stopped.as_deref();
        assert!(why.is_some_and(|why| why.contains("a loss was accepted")));
    }
}

#[test]
fn a_swap_makes_another_node_primary() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    many.commit(1, 10);
    let old = many.primary();
    let now = many.now;
    let to = many.node(old).best_successor().unwrap();
    many.node(old).swap(Token(3), None, now);
    many.follow(old);
    many.settle();
    assert_eq!(many.nodes[old].serving.writers, Writers::Draining);
    let now = many.now;
    many.node(old).on_drained(now);
    many.follow(old);
    many.pass(2 * LEASE);
    let epoch = many.node(old).overview().unwrap().promised;
    assert_eq!(
        many.said(old),
        [format!("{to} is primary of epoch {epoch}")]
    );
    let new = many.primary();
    assert_eq!(many.nodes[new].name, to.as_str());
    assert_eq!(many.node(old).primary(), Some(to));
    many.commit(2, 10);
    assert_eq!(many.history(old), many.history(new));
}

#[test]
fn why_the_database_cannot_be_copied_is_said_as_long_as_it_is_so() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    let d = many.add("d", NodeKind::Data, &["a", "b", "c"]);
    many.nodes[d].copying = Some(Vec::new());
    many.start(d);
    many.view();
    many.pass(LEASE);
    let copy = many.nodes[d].copying.as_mut().unwrap().remove(0);
    let now = many.now;
    let why = Err("it has other storages".to_owned());
    many.node(d).on_copied(copy.id, why, now);
    many.follow(d);
    let state = many.node(d).state();
    assert_eq!(state, "the database was not copied: it has other storages");
}

#[test]
fn a_member_that_does_not_say_who_it_is_keeps_nobody_out_of_a_cluster() {
    let mut many = Many::three();
    many.silent = Some("x");
    many.start_all();
    many.pass(2 * LEASE);
    many.pass(Duration::from_secs(12));
    // It may be part of one: none is founded.
    for at in 0..3 {
        let state = many.node(at).state();
        assert!(state.contains("x does not say who it is"), "{state}");
        assert_eq!(many.history(at), None);
    }
    many.silent = None;
    many.view();
    many.pass(3 * LEASE + Duration::from_secs(4));
    many.commit(1, 10);
    let d = many.add("d", NodeKind::Data, &["a", "b", "c"]);
    many.silent = Some("x");
    many.start(d);
    many.view();
    many.pass(Duration::from_secs(20));
    assert_ne!(many.history(d), None);
}

#[test]
fn a_swap_is_answered_when_the_other_is_open() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    let old = many.primary();
    let now = many.now;
    let to = many.node(old).best_successor().unwrap();
    many.node(old).swap(Token(3), Some(to), now);
    many.node(old).on_drained(now);
    many.follow(old);
    for _ in 0..200 {
        many.pass(Duration::from_millis(50));
        let new = many
            .nodes
            .iter()
            .position(|it| it.name == to.as_str())
            .unwrap();
        if !many.said(old).is_empty() {
            assert_eq!(many.nodes[new].serving.writers, Writers::Open);
            return;
        }
    }
    panic!("no answer");
}

#[test]
fn an_administrator_is_told_what_to_do_instead() {
    let mut many = Many::three();
    many.add("o", NodeKind::Observer, &[]);
    many.add("x", NodeKind::Arbiter, &[]);
    many.start_all();
    many.pass(4 * LEASE);
    let primary = many.primary();
    let replica = (primary + 1) % 3;
    let (me, other) = (many.nodes[primary].name, many.nodes[replica].name);
    let id = |name: &str| NodeId::new(name).unwrap();
    let now = many.now;
    let swap = |to: &str| Some(id(to));
    many.node(primary).swap(Token(1), swap(me), now);
    many.node(primary).swap(Token(2), swap("o"), now);
    many.node(primary).swap(Token(3), swap("nobody"), now);
    many.node(primary)
        .promote(Token(4), false, HistoryId([9; 16]), now);
    for (token, change) in [
        (5, MemberChange::Remove(id(me))),
        (6, MemberChange::Remove(id("o"))),
        (7, MemberChange::Add(id(other))),
        (8, MemberChange::Add(id("o"))),
        (9, MemberChange::AddArbiter(id("x"))),
        (10, MemberChange::AddArbiter(id("o"))),
        (11, MemberChange::RemoveArbiter),
    ] {
        many.node(primary).change_members(Token(token), change, now);
    }
    many.follow(primary);
    let said = many.said(primary);
    let expected = [
        format!("no: {me} is the primary already; to hand over, name another node or none"),
        "no: o cannot be primary: it is an observer, by role in its configuration".to_owned(),
        "no: nobody is not here; here are a, b, c, o, x".to_owned(),
        format!("no: {me} is the primary already"),
        format!("no: {me} is the primary: 'standbyctl swap' first, then ask the new primary"),
        "no: o is no voter; voters are a, b, c".to_owned(),
        format!("no: {other} is a voter already"),
        "no: o has role observer in its configuration, and would need data".to_owned(),
        "no: an arbiter decides between two voters; voters are a, b, c".to_owned(),
        "no: o has role observer in its configuration, and would need arbiter".to_owned(),
        "no: there is no arbiter".to_owned(),
    ];
    assert_eq!(said, expected);
    many.node(replica).swap(Token(1), None, now);
    many.node(replica)
        .promote(Token(2), false, HistoryId([9; 16]), now);
    many.follow(replica);
    let said = many.said(replica);
    assert_eq!(said[0], format!("no: {other} is not the primary"));
    assert!(said[1].contains(&format!(
        "{me} is primary: give 'standbyctl swap {other}' there"
    )));
    // Nothing is given up that is there.
    many.node(replica)
        .promote(Token(3), true, HistoryId([9; 16]), now);
    many.follow(replica);
    let said = many.said(replica);
    assert!(
        said[2].contains(&format!("{me} is primary: nothing has to be lost")),
        "{said:?}"
    );
    many.kill(primary);
    many.node(replica)
        .promote(Token(4), true, HistoryId([9; 16]), now);
    many.follow(replica);
    let said = many.said(replica);
    assert!(said[3].contains("nothing has to be lost"), "{said:?}");
}

#[test]
fn who_was_copied_from_the_new_history_tells_the_old_one_too() {
    let mut many = Many::three();
    let seeded = many.add("d", NodeKind::Data, &[]);
    for at in 0..3 {
        many.start(at);
    }
    many.view();
    many.pass(3 * LEASE);
    many.commit(1, 10);
    let left = (many.primary() + 1) % 3;
    for at in (0..3).filter(|at| *at != left) {
        many.kill(at);
    }
    many.pass(3 * LEASE);
    // Twice: a history has a past of more than one. Who is in office accepts no loss.
    let old = many.history(left).unwrap();
    for byte in [8, 9] {
        many.kill(left);
        many.start(left);
        let now = many.now;
        many.node(left)
            .promote(Token(byte.into()), true, HistoryId([byte; 16]), now);
        many.follow(left);
        many.view();
        many.pass(3 * LEASE);
    }
    many.start(seeded);
    many.view();
    many.pass(4 * LEASE);
    assert_eq!(many.history(seeded), Some(HistoryId([9; 16])));
    // What a node keeps is known after its next start, too.
    many.kill(left);
    many.kill(seeded);
    many.start(seeded);
    let past = many.node(seeded).roster.me().past.clone();
    assert_eq!(past, [old, HistoryId([8; 16])]);
    let superseded = (left + 1) % 3;
    many.start(superseded);
    many.view();
    many.pass(LEASE);
    let why = many.nodes[superseded].stopped.as_deref();
    assert!(
        why.is_some_and(|why| why.contains("a loss was accepted at d")),
        "{why:?}"
    );
}
