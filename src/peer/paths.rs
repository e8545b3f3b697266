//! Who is heard of, and by which path: through the daemon, and directly, by a beat that is sent to
//! each other node twice a second and answered at once. From the difference follows who is to
//! blame when something is missing. Nobody's part in the group depends on it.
//!
//! [`Paths::look`] is to be called every [`BEAT_INTERVAL`], and what
//! [`Paths::due`] then says is to be asked. Each of these ends by [`Paths::on_answer`] or
//! [`Paths::on_failed`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::blame::{Overall, Steady, Trouble, Witnessed};
use crate::ids::{Epoch, NodeId};
use crate::limits::{BEAT_FORGOTTEN, BEAT_INTERVAL, BEAT_LOST, BEAT_NODES_MAX};
use crate::replica::message::Role;

/// What a node says of itself with each beat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// What it does.
    pub role: Role,
    /// The epoch that it has promised; [`Epoch::ZERO`] without a journal.
    pub epoch: Epoch,
    /// Members of the view that it is in; zero if it is in none.
    pub members: u16,
}

/// What is known of a node by the direct path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// When it said something last: an answer, or a beat of its own.
    pub last: Instant,
    /// When it answered last.
    pub answered: Option<Instant>,
    /// How long its last answer took.
    pub round_trip: Option<Duration>,
    /// What it said; `None` of a version that does not say it.
    pub beat: Option<Beat>,
}

/// Why a node was not reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What that tells.
    pub kind: FailureKind,
    /// For people
    pub why: String,
}

/// What it tells that a node was not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Its machine says that nobody listens there.
    Refused,
    /// Nothing comes back from there.
    Unreachable,
    /// It says nothing any more.
    Silent,
    /// Its machine takes connections for it, and it says nothing there.
    Mute,
    /// What answers there is not the node, or does not talk to us.
    Stranger,
}

impl Failure {
    /// For a reason.
    pub fn new(kind: FailureKind, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { kind, why }
    }
}

/// A node, as the group shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its name
    pub node: NodeId,
    /// Its address, if it has said one in this view.
    pub address: Option<String>,
    /// It is a member of the view that we are in.
    pub is_here: bool,
}

/// All that is known of another node.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) address: String,
    pub(super) is_here: bool,
    /// It is a voter, or the arbiter.
    pub(super) is_counted: bool,
    /// A beat is on its way since then.
    asked: Option<Instant>,
    pub(super) heard: Option<Heard>,
    pub(super) failure: Option<Failure>,
    /// When it was in the view, or counted, or heard last.
    wanted: Instant,
    trouble: Steady<Option<Trouble>>,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Paths {
    nodes: BTreeMap<NodeId, Known>,
    overall: Steady<Overall>,
    /// What was said of the witnesses last.
    witnessed: Witnessed,
}

impl Paths {
    /// What is known of a node by the direct path.
    pub fn direct(&self, node: NodeId) -> Option<Heard> {
        self.nodes.get(&node)?.heard
    }

    /// Whether any node is missing by either path: then it matters who else answers.
    pub fn is_anybody_missing(&self, now: Instant) -> bool {
        let mut nodes = self.nodes.values();
        nodes.any(|it| !it.is_here || !it.is_direct(now))
    }

    /// Whether neither another node nor a witness is heard.
    pub fn is_isolated(&self) -> bool {
        *self.overall.held() == Overall::Isolated
    }

    /// What is wrong with a node, in one word.
    pub fn trouble(&self, node: NodeId) -> Option<&'static str> {
        let known = self.nodes.get(&node)?;
        known.trouble.held().map(Trouble::word)
    }

    /// What is wrong, and who is to blame: a line for each, of the whole first.
    pub fn troubles(&self) -> Vec<String> {
        let overall = self.overall.held().text(&self.names(), &self.witnessed);
        let nodes = self.nodes.iter().filter_map(|(node, known)| {
            let trouble = *known.trouble.held();
            trouble.map(|trouble| trouble.text(*node, known))
        });
        overall.into_iter().chain(nodes).collect()
    }

    /// Takes what the group shows of the other nodes, `counted` of which are counted, and looks
    /// what has changed: what is to be told.
    pub fn look(
        &mut self,
        shown: Vec<Shown>,
        counted: &[NodeId],
        is_in_view: bool,
        witnessed: Witnessed,
        now: Instant,
    ) -> Vec<String> {
        self.take(shown, counted, now);
        self.witnessed = witnessed;
        let mut news = Vec::new();
        let overall = self.overall_now(counted, is_in_view, now);
        if self.overall.see(overall, now) {
            let text = self.overall.held().text(&self.names(), &self.witnessed);
            news.push(text.unwrap_or_else(|| "other nodes are heard again".to_owned()));
        }
        for (node, known) in &mut self.nodes {
            // One line says it for all.
            let trouble = match overall {
                Overall::Isolated | Overall::Unheard => None,
                _ => Trouble::of(known, is_in_view, now),
            };
            if known.trouble.see(trouble, now) {
                news.push(match *known.trouble.held() {
                    Some(trouble) => trouble.text(*node, known),
                    None if known.is_here && known.is_direct(now) => {
                        format!("{node} is heard again, by both paths")
                    }
                    // The whole is worse, and is told.
                    None => continue,
                });
            }
        }
        news
    }

    /// Nodes that are to get a beat now, and their addresses.
    pub fn due(&mut self, now: Instant) -> Vec<(NodeId, String)> {
        let free = self.nodes.iter_mut().filter(|(_, it)| it.asked.is_none());
        free.map(|(node, known)| {
            known.asked = Some(now);
            (*node, known.address.clone())
        })
        .collect()
    }

    /// `from` has answered a beat that was meant for `node`; without a beat of its own, if its
    /// version has none.
    pub fn on_answer(&mut self, node: NodeId, from: NodeId, beat: Option<Beat>, now: Instant) {
        let Some(known) = self.nodes.get_mut(&node) else {
            return;
        };
        let Some(asked) = known.asked.take() else {
            return;
        };
        if from != node {
            let why = format!("{from} answers there");
            known.failure = Some(Failure::new(FailureKind::Stranger, why));
            return;
        }
        known.failure = None;
        known.heard = Some(Heard {
            last: now,
            answered: Some(now),
            round_trip: Some(now.saturating_duration_since(asked)),
            beat,
        });
    }

    /// A beat has no answer.
    pub fn on_failed(&mut self, node: NodeId, failure: Failure) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.asked = None;
            known.failure = Some(failure);
        }
    }

    /// Another node's own beat has come.
    pub fn on_beat(&mut self, from: NodeId, beat: Beat, now: Instant) {
        if let Some(known) = self.nodes.get_mut(&from) {
            let before = known.heard;
            known.heard = Some(Heard {
                last: now,
                answered: before.and_then(|it| it.answered),
                round_trip: before.and_then(|it| it.round_trip),
                beat: Some(beat),
            });
        }
    }

    fn take(&mut self, shown: Vec<Shown>, counted: &[NodeId], now: Instant) {
        for known in self.nodes.values_mut() {
            known.is_here = false;
        }
        for Shown {
            node,
            address,
            is_here,
        } in shown
        {
            let has_room = self.nodes.len() < BEAT_NODES_MAX;
            match (self.nodes.get_mut(&node), address) {
                (Some(known), address) => {
                    known.is_here |= is_here;
                    if let Some(address) = address.filter(|it| *it != known.address) {
                        known.address = address;
                        known.failure = None;
                    }
                }
                (None, Some(address)) if has_room => {
                    let known = Known::new(address, is_here, now);
                    self.nodes.insert(node, known);
                }
                (None, _) => {}
            }
        }
        for (node, known) in &mut self.nodes {
            known.is_counted = counted.contains(node);
            if known.is_here || known.is_counted || known.is_direct(now) {
                known.wanted = now;
            }
        }
        let is_wanted = |known: &Known| now < known.wanted + BEAT_FORGOTTEN;
        self.nodes.retain(|_, known| is_wanted(known));
    }

    fn overall_now(&self, counted: &[NodeId], is_in_view: bool, now: Instant) -> Overall {
        let mut nodes = self.nodes.values();
        if self.nodes.is_empty() && counted.is_empty() {
            return Overall::Fine;
        }
        if is_in_view && nodes.any(|it| it.is_here) {
            return Overall::Fine;
        }
        let direct: Vec<&Known> = self.nodes.values().filter(|it| it.is_direct(now)).collect();
        if !direct.is_empty() {
            // In a view of its own, a node is one that the daemons part: each has its line.
            if is_in_view {
                return Overall::Fine;
            }
            let members = |it: &Known| it.heard.and_then(|heard| heard.beat).map(|it| it.members);
            return match direct.iter().all(|it| members(it) == Some(0)) {
                true => Overall::NobodyInView,
                false => Overall::NotInView,
            };
        }
        let refuses = |it: &Known| {
            let kind = it.failure.as_ref().map(|failure| failure.kind);
            use FailureKind::{Mute, Refused, Stranger};
            matches!(kind, Some(Refused | Stranger | Mute))
        };
        match &self.witnessed {
            _ if self.nodes.values().any(refuses) => Overall::OthersGone,
            Witnessed::Answers(_) => Overall::OthersGone,
            Witnessed::Silent => Overall::Isolated,
            Witnessed::NoneNamed => Overall::Unheard,
            Witnessed::NotKnown => *self.overall.held(),
        }
    }

    /// Nodes that are heard directly, or whose machines are, for people.
    fn names(&self) -> String {
        let has_sign = |known: &Known| {
            let kind = known.failure.as_ref().map(|it| it.kind);
            matches!(
                kind,
                None | Some(FailureKind::Refused | FailureKind::Stranger | FailureKind::Mute)
            )
        };
        let signs = self.nodes.iter().filter(|(_, known)| has_sign(known));
        let names: Vec<&str> = signs.map(|(node, _)| node.as_str()).collect();
        names.join(", ")
    }
}

impl Known {
    const fn new(address: String, is_here: bool, now: Instant) -> Self {
        Self {
            address,
            is_here,
            is_counted: false,
            asked: None,
            heard: None,
            failure: None,
            wanted: now,
            trouble: Steady::new(None),
        }
    }

    /// Whether it was heard of by the direct path lately.
    pub(super) fn is_direct(&self, now: Instant) -> bool {
        self.heard.is_some_and(|heard| now < heard.last + BEAT_LOST)
    }
}

// Some beats may be lost before a node is.
const _: () = assert!(BEAT_INTERVAL.as_millis() * 4 < BEAT_LOST.as_millis());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{TROUBLE_LOG_INTERVAL, TROUBLE_STEADY};

    /// Three nodes, as `alpha` sees them.
    struct Rig {
        paths: Paths,
        now: Instant,
        /// Members of the view that alpha is in, besides itself; `None` if it is in none.
        view: Option<Vec<&'static str>>,
        /// What becomes of beats, by the node.
        direct: BTreeMap<&'static str, Result<Beat, Failure>>,
        witnessed: Witnessed,
        news: Vec<String>,
    }

    const OTHERS: [&str; 2] = ["beta", "gamma"];

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn in_view_of(members: u16) -> Result<Beat, Failure> {
        Ok(Beat {
            members,
            ..Beat::default()
        })
    }

    fn failing(kind: FailureKind) -> Result<Beat, Failure> {
        Err(Failure::new(kind, "the reason"))
    }

    impl Rig {
        #[expect(clippy::disallowed_methods, reason = "any time will do")]
        fn new() -> Self {
            let mut rig = Self {
                paths: Paths::default(),
                now: Instant::now(),
                view: Some(OTHERS.to_vec()),
                direct: OTHERS.map(|name| (name, in_view_of(3))).into(),
                witnessed: Witnessed::NoneNamed,
                news: Vec::new(),
            };
            rig.pass(BEAT_LOST);
            assert!(rig.news.is_empty() && rig.paths.troubles().is_empty());
            rig
        }

        fn pass(&mut self, time: Duration) {
            let until = self.now + time;
            while self.now < until {
                self.now += BEAT_INTERVAL;
                let shown = OTHERS.iter().filter(|name| {
                    let view = self.view.as_ref();
                    view.is_some_and(|view| view.contains(name))
                });
                let shown = shown.map(|name| Shown {
                    node: node(name),
                    address: Some(format!("{name}:8102")),
                    is_here: true,
                });
                self.news.extend(self.paths.look(
                    shown.collect(),
                    &OTHERS.map(node),
                    self.view.is_some(),
                    self.witnessed.clone(),
                    self.now,
                ));
                for (node, to) in self.paths.due(self.now) {
                    assert_eq!(to, format!("{node}:8102"));
                    match self.direct[node.as_str()].clone() {
                        Ok(beat) => self.paths.on_answer(node, node, Some(beat), self.now),
                        Err(failure) => self.paths.on_failed(node, failure),
                    }
                }
            }
        }

        /// The only line of the status, which was told once.
        #[track_caller]
        fn only_trouble(&mut self) -> String {
            self.pass(BEAT_LOST + TROUBLE_STEADY);
            let troubles = self.paths.troubles();
            assert_eq!((troubles.len(), &troubles), (1, &self.news));
            troubles[0].clone()
        }
    }

    #[test]
    fn the_blame_is_put_on_who_does_not_do_its_part() {
        use FailureKind::{Mute, Refused, Silent, Stranger, Unreachable};
        for (is_here, direct, word, text) in [
            (
                false,
                in_view_of(2),
                "daemon",
                "beta:8102, and is in a view of 2: the daemons",
            ),
            (false, in_view_of(0), "daemon", "in no view: its daemon"),
            (
                true,
                failing(Silent),
                "hung",
                "does not answer at beta:8102 though",
            ),
            (
                true,
                failing(Refused),
                "path",
                "its peer-address, or the network",
            ),
            (true, failing(Stranger), "stranger", "there is not beta"),
            (
                false,
                failing(Refused),
                "stopped",
                "does not run there (the reason)",
            ),
            (
                true,
                failing(Mute),
                "hung",
                "does not answer at beta:8102 though",
            ),
            (false, failing(Mute), "hung", "hung or stopped"),
            (false, failing(Silent), "gone", "or its network is down"),
            (
                false,
                failing(Unreachable),
                "gone",
                "the machine or its network is down",
            ),
        ] {
            let mut rig = Rig::new();
            rig.view = Some(if is_here {
                OTHERS.to_vec()
            } else {
                vec!["gamma"]
            });
            rig.direct.insert("beta", direct);
            let found = rig.only_trouble();
            assert!(found.contains(text) && found.contains("beta"), "{found}");
            assert_eq!(rig.paths.trouble(node("beta")), Some(word));
            assert_eq!(rig.paths.trouble(node("gamma")), None);
            assert!(rig.paths.is_anybody_missing(rig.now));
            // And all is well again.
            rig.view = Some(OTHERS.to_vec());
            rig.direct.insert("beta", in_view_of(3));
            rig.news.clear();
            rig.pass(TROUBLE_STEADY + 2 * BEAT_INTERVAL);
            assert_eq!(rig.news, ["beta is heard again, by both paths"]);
            assert!(rig.paths.troubles().is_empty());
            assert!(!rig.paths.is_anybody_missing(rig.now));
        }
    }

    #[test]
    fn what_does_not_last_is_not_told() {
        let mut rig = Rig::new();
        for _ in 0..5 {
            rig.view = Some(vec!["gamma"]);
            rig.pass(TROUBLE_STEADY - BEAT_INTERVAL);
            rig.view = Some(OTHERS.to_vec());
            rig.pass(TROUBLE_STEADY);
        }
        assert_eq!((&rig.news[..], rig.paths.troubles().len()), (&[][..], 0));
    }

    #[test]
    fn what_comes_and_goes_is_told_once_in_a_while() {
        let mut rig = Rig::new();
        let begin = rig.now;
        let steady = TROUBLE_STEADY + BEAT_INTERVAL;
        while rig.now < begin + TROUBLE_LOG_INTERVAL {
            rig.view = Some(vec!["gamma"]);
            rig.pass(steady);
            assert_eq!(rig.paths.troubles().len(), 1);
            rig.view = Some(OTHERS.to_vec());
            rig.pass(steady);
            assert_eq!(rig.paths.troubles().len(), 0);
        }
        assert_eq!(rig.news.len(), 2, "{:?}", rig.news);
        rig.pass(TROUBLE_LOG_INTERVAL);
        rig.view = Some(vec!["gamma"]);
        rig.pass(steady);
        assert_eq!(rig.news.len(), 3, "{:?}", rig.news);
    }

    #[test]
    fn a_node_without_a_view_looks_at_its_own_daemon_first() {
        let mut rig = Rig::new();
        rig.view = None;
        rig.direct = OTHERS.map(|name| (name, in_view_of(2))).into();
        let found = rig.only_trouble();
        assert!(
            found.contains("(beta, gamma): the daemon of this node"),
            "{found}"
        );
        let mut rig = Rig::new();
        rig.view = None;
        rig.direct = OTHERS.map(|name| (name, in_view_of(0))).into();
        let found = rig.only_trouble();
        assert!(found.starts_with("no node is in a view"), "{found}");
    }

    #[test]
    fn a_node_that_hears_nobody_asks_witnesses_whether_it_is_cut_off() {
        let unheard = |witnessed: Witnessed| {
            let mut rig = Rig::new();
            rig.view = Some(vec![]);
            rig.direct = OTHERS
                .map(|name| (name, failing(FailureKind::Unreachable)))
                .into();
            rig.witnessed = witnessed;
            rig
        };
        let mut rig = unheard(Witnessed::NoneNamed);
        assert!(rig.only_trouble().contains("there is no witness to tell"));
        assert!(!rig.paths.is_isolated());
        let mut rig = unheard(Witnessed::Silent);
        let isolated = "isolated: no other node and no witness is heard";
        assert_eq!(rig.only_trouble(), isolated);
        assert!(rig.paths.is_isolated());
        // The lines of nodes that would be on a node that is not isolated.
        let mut rig = unheard(Witnessed::Answers("10.0.0.254:7".to_owned()));
        rig.pass(BEAT_LOST + TROUBLE_STEADY);
        let troubles = rig.paths.troubles();
        assert_eq!((troubles.len(), &troubles), (3, &rig.news));
        let gone = "the others are gone, the network is there: 10.0.0.254:7 answers";
        assert_eq!(troubles[0], gone);
        // Who says that nobody is there is as good as a witness.
        let mut rig = unheard(Witnessed::Silent);
        rig.direct.insert("beta", failing(FailureKind::Refused));
        rig.pass(BEAT_LOST + TROUBLE_STEADY);
        let gone = "the others are gone, the network is there: machines answer (beta)";
        assert_eq!(rig.paths.troubles()[0], gone);
        // Nothing is said until a witness was asked.
        let mut rig = unheard(Witnessed::NotKnown);
        rig.pass(BEAT_LOST + TROUBLE_STEADY);
        assert_eq!(rig.paths.troubles().len(), 2);
    }

    #[test]
    fn it_is_known_how_long_an_answer_took_and_what_it_said() {
        let mut rig = Rig::new();
        let beat = Beat {
            role: Role::Primary,
            epoch: Epoch {
                counter: 7,
                node: node("beta"),
            },
            members: 3,
        };
        let before = rig.paths.direct(node("beta")).unwrap();
        assert_eq!(rig.paths.due(rig.now).len(), 2);
        assert_eq!(rig.paths.due(rig.now), [], "one beat at a time");
        let later = rig.now + Duration::from_millis(7);
        rig.paths
            .on_answer(node("beta"), node("beta"), Some(beat), later);
        let heard = rig.paths.direct(node("beta")).unwrap();
        assert_eq!((heard.last, heard.answered), (later, Some(later)));
        assert_eq!(
            (heard.round_trip, heard.beat),
            (Some(Duration::from_millis(7)), Some(beat))
        );
        // Another version is there, too, and somebody else is not.
        rig.paths
            .on_answer(node("gamma"), node("delta"), Some(beat), later);
        assert_ne!(rig.paths.direct(node("gamma")).unwrap().last, later);
        // Its own beat tells as much, but for the time.
        let last = later + Duration::from_millis(9);
        rig.paths.on_beat(node("beta"), beat, last);
        let heard = rig.paths.direct(node("beta")).unwrap();
        assert_eq!((heard.last, heard.answered), (last, Some(later)));
        assert_ne!(heard.last, before.last);
        assert_eq!(rig.paths.direct(node("delta")), None);
    }

    #[test]
    fn who_is_not_counted_is_forgotten_after_a_while() {
        let mut rig = Rig::new();
        rig.view = Some(vec![]);
        rig.direct = OTHERS
            .map(|name| (name, failing(FailureKind::Refused)))
            .into();
        rig.pass(2 * BEAT_FORGOTTEN);
        assert_eq!(rig.paths.nodes.len(), 2, "both are counted");
        let text = |paths: &Paths, name: &str| {
            let known = &paths.nodes[&node(name)];
            Trouble::NotRunning.text(node(name), known)
        };
        assert!(!text(&rig.paths, "beta").contains("not counted"));
        let until = rig.now + BEAT_FORGOTTEN;
        let before = until - Duration::from_secs(1);
        rig.paths
            .look(vec![], &[node("beta")], true, Witnessed::NoneNamed, before);
        let text = text(&rig.paths, "gamma");
        assert!(text.ends_with("; it is not counted, and forgotten 10 minutes after it went"));
        rig.paths
            .look(vec![], &[node("beta")], true, Witnessed::NoneNamed, until);
        assert_eq!(rig.paths.nodes.keys().collect::<Vec<_>>(), [&node("beta")]);
        // And there are no more than there may be.
        for number in 0..2 * BEAT_NODES_MAX {
            let shown = Shown {
                node: node(&format!("n{number}")),
                address: Some("n:1".to_owned()),
                is_here: true,
            };
            let witnessed = Witnessed::NoneNamed;
            rig.paths.look(vec![shown], &[], true, witnessed, until);
        }
        assert_eq!(rig.paths.nodes.len(), BEAT_NODES_MAX);
    }
}
