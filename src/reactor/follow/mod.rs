//! Threads that follow other servers, one for each `<follow>`.
//!
//! [`Follower`] asks one thing after the other, and waits for each: on a thread of its own, with
//! blocking sockets, it is a loop that can be read. The thread has two connections: one to the
//! source, and one to this server, a pair of sockets whose other end it hands to the reactor, which
//! serves it as any client's.

mod line;

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Instant;

use mio::{Waker, net};

use self::line::{Line, connect};
use super::{Reactor, certificates, connection, now};
use crate::config::{Address, FollowConfig};
use crate::exit::Exit;
use crate::follow::{Conversation, Follower, Known, Progress, Reached, Side, Trouble};
use crate::ids::Tid;
use crate::limits::{
    FOLLOW_REMIND_INTERVAL, FOLLOW_REPORT_INTERVAL, FOLLOW_RETRY_MAX, FOLLOW_RETRY_MIN,
    FOLLOW_SHORT_MAX, FOLLOW_SHORT_MIN,
};
use crate::server::Now;
use crate::tls::Setup;

/// How far a copy is, for who asks this server for its status: the source cannot be had, or is
/// behind.
pub(super) const AWAY: &str = "away";
/// What it has is being copied.
const COPYING: &str = "copying";
/// All that it has told of is here.
const LEVEL: &str = "level";
/// It gives less than it has told of.
const SHORT: &str = "short";
/// Nothing more is taken.
const STOPPED: &str = "stopped";

/// What a thread tells the reactor.
#[derive(Debug)]
enum News {
    /// It has made a connection to this server.
    Connected(UnixStream),
    /// How far the copy of this storage is.
    Is(String, &'static str),
}

/// The reactor's end.
#[derive(Debug)]
pub(super) struct Following {
    arrivals: Receiver<News>,
    stopping: Arc<AtomicBool>,
}

impl Following {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// Certificates cannot be read, or a thread not be started.
    pub(super) fn start(
        configs: &[FollowConfig],
        waker: &Arc<Waker>,
    ) -> Result<Option<Self>, (Exit, String)> {
        if configs.is_empty() {
            return Ok(None);
        }
        // A thread waits until there is room.
        let (door, arrivals) = mpsc::sync_channel(2 * configs.len());
        let stopping = Arc::new(AtomicBool::new(false));
        for config in configs {
            let setup = config.ssl.as_ref().map(certificates::setup);
            let setup = setup.transpose().map_err(|error| (Exit::Usage, error))?;
            let thread = Thread {
                config: config.clone(),
                setup,
                door: door.clone(),
                waker: waker.clone(),
                stopping: stopping.clone(),
            };
            let spawned = thread::Builder::new()
                .name("follow".to_owned())
                .spawn(move || thread.run());
            spawned.map_err(|error| (Exit::Internal, format!("cannot start: {error}")))?;
        }
        Ok(Some(Self { arrivals, stopping }))
    }

    /// This server stops: that its connections end is no trouble to speak of. The threads end with
    /// the process, wherever they are: what they have not finished is rolled back.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

impl Reactor {
    /// Takes what threads that follow tell.
    pub(super) fn take_feeds(&mut self, now: Now) {
        while let Some(following) = &self.following
            && let Ok(news) = following.arrivals.try_recv()
        {
            let stream = match news {
                News::Connected(stream) => stream,
                News::Is(storage, how) => {
                    self.server.set_following(&storage, how, now);
                    continue;
                }
            };
            if let Err(error) = stream.set_nonblocking(true) {
                log::error!("follow: no connection to this server ({error})");
                continue;
            }
            let stream = connection::Stream::Unix(net::UnixStream::from_std(stream));
            self.connect_feed(stream, "follow".to_owned(), now);
        }
    }
}

/// What a thread knows.
struct Thread {
    config: FollowConfig,
    setup: Option<Setup>,
    door: SyncSender<News>,
    waker: Arc<Waker>,
    stopping: Arc<AtomicBool>,
}

/// Why following has ended for now.
enum Ended {
    /// See [`Trouble`].
    Trouble(Trouble),
    /// This server ends.
    Stopping,
}

impl From<Trouble> for Ended {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

/// What outlives a connection.
#[derive(Default)]
struct Kept {
    /// Which of the addresses is tried first.
    at: usize,
    known: Known,
    said: Said,
}

/// What was said last, so that it is not said each second.
#[derive(Default)]
struct Said {
    /// Since when the source cannot be had.
    away_since: Option<Instant>,
    reminded: Option<Instant>,
    /// It was here, and all or some of what it has told of is.
    reached: Option<(Tid, Tid)>,
    /// When it was said that the source is behind, or gives less than it has told of.
    accused: Option<Instant>,
    /// What the reactor was told last.
    is: Option<&'static str>,
}

impl Said {
    /// Whether it is time to say what is wrong with the source.
    fn may_accuse(&mut self, now: Instant) -> bool {
        let is_due = |at| now >= at + FOLLOW_REMIND_INTERVAL;
        let may = self.accused.is_none_or(is_due);
        if may {
            self.accused = Some(now);
        }
        may
    }
}

impl Thread {
    fn run(self) {
        let mut kept = Kept::default();
        let mut pause = FOLLOW_RETRY_MIN;
        loop {
            let mut has_followed = false;
            match self.follow(&mut kept, &mut has_followed) {
                Ended::Stopping => return,
                Ended::Trouble(Trouble::Stop(why)) => {
                    self.tell(&mut kept.said, STOPPED);
                    return self.stop(&why);
                }
                Ended::Trouble(trouble) => {
                    self.tell(&mut kept.said, AWAY);
                    self.complain(&mut kept.said, &trouble);
                }
            }
            if has_followed {
                kept.at = 0;
                pause = FOLLOW_RETRY_MIN;
            } else {
                // Whoever answered there is no server, or cannot serve.
                kept.at = (kept.at + 1) % self.config.servers.len().max(1);
            }
            thread::sleep(pause);
            pause = (2 * pause).min(FOLLOW_RETRY_MAX);
        }
    }

    /// Follows until that ends.
    fn follow(&self, kept: &mut Kept, has_followed: &mut bool) -> Ended {
        match self.begin(kept) {
            Ok(mut follower) => {
                let (last, told) = (follower.progress().last, follower.told());
                log::info!("{self}: connected: {last} is the last here, and {told} there");
                kept.said.away_since = None;
                let trouble = self.go_on(&mut follower, &mut kept.said, has_followed);
                let progress = follower.progress();
                *has_followed |= progress.transactions > 0;
                kept.said.reached = Some((progress.last, follower.told()));
                kept.known = follower.into_known();
                trouble.into()
            }
            Err(ended) => ended,
        }
    }

    fn begin(&self, kept: &mut Kept) -> Result<Follower<Line, Line>, Ended> {
        let config = &self.config;
        let unreachable = |why: String| Trouble::Lost {
            side: Side::Source,
            why,
        };
        let setup = self.setup.as_ref();
        let connected = connect_to_one(&config.servers, &mut kept.at, setup);
        let source = Conversation::open(Side::Source, connected.map_err(unreachable)?)?;
        let failed = |error: io::Error| Trouble::Lost {
            side: Side::Ours,
            why: error.to_string(),
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let ours = Line::unix(ours).map_err(failed)?;
        let news = News::Connected(theirs);
        self.door.send(news).map_err(|_| Ended::Stopping)?;
        self.waker.wake().map_err(failed)?;
        let ours = Conversation::open(Side::Ours, ours)?;
        let (source, ours) = ((source, &*config.source), (ours, &*config.storage));
        Ok(Follower::begin(source, ours, &mut kept.known)?)
    }

    fn go_on(
        &self,
        follower: &mut Follower<Line, Line>,
        said: &mut Said,
        has_followed: &mut bool,
    ) -> Trouble {
        let mut is_level = false;
        let mut reported = now().mono;
        let mut pause = FOLLOW_SHORT_MIN;
        self.tell(said, COPYING);
        loop {
            let mut is_long = false;
            let copied = follower.catch_up(&mut |progress| {
                let now = now().mono;
                if now >= reported + FOLLOW_REPORT_INTERVAL {
                    reported = now;
                    is_long = true;
                    log::info!("{self}: {}", Copied(progress));
                }
            });
            let reached = match copied {
                Ok(reached) => reached,
                Err(trouble) => return trouble,
            };
            *has_followed = true;
            let progress = follower.progress();
            log::debug!("{self}: {}", Copied(progress));
            reported = now().mono;
            match reached {
                Reached::Short => {
                    is_level = false;
                    self.accuse(said, progress.last, follower.told());
                    thread::sleep(pause);
                    pause = (2 * pause).min(FOLLOW_SHORT_MAX);
                    continue;
                }
                Reached::More => continue,
                Reached::Level => {}
            }
            if !is_level || is_long {
                log::info!("{self}: level with the source: {}", Copied(progress));
            }
            (is_level, pause, said.accused) = (true, FOLLOW_SHORT_MIN, None);
            self.tell(said, LEVEL);
            if let Err(trouble) = follower.wait() {
                return trouble;
            }
        }
    }

    /// The source gives less than it has told of.
    fn accuse(&self, said: &mut Said, last: Tid, told: Tid) {
        self.tell(said, SHORT);
        if said.may_accuse(now().mono) {
            log::error!(
                "{self}: NOT level: it has told of {told}, but what it gives ends at {last}. Its \
                 file may be damaged behind that (stop it, and look with fstest), or {told} was \
                 packed away"
            );
        }
    }

    /// Lets this server say how far it is.
    fn tell(&self, said: &mut Said, how: &'static str) {
        if said.is.replace(how) == Some(how) {
            return;
        }
        // Nobody takes it when this server ends.
        if self
            .door
            .send(News::Is(self.config.storage.clone(), how))
            .is_ok()
        {
            _ = self.waker.wake();
        }
    }

    /// Nothing more is taken, until somebody has looked.
    fn stop(&self, why: &str) {
        loop {
            log::error!("{self}: following has stopped, until this server is started again: {why}");
            thread::sleep(FOLLOW_REMIND_INTERVAL);
        }
    }

    fn complain(&self, said: &mut Said, trouble: &Trouble) {
        if self.stopping.load(Ordering::Relaxed) {
            return;
        }
        let now = now().mono;
        match trouble {
            Trouble::Lost {
                side: Side::Ours,
                why,
            } => return log::error!("{self}: not committed here: {why}"),
            Trouble::Behind(why) => {
                if said.may_accuse(now) {
                    log::error!(
                        "{self}: it is behind: {why}. Nothing is copied until it has as much"
                    );
                }
                return;
            }
            _ => {}
        }
        let Some(since) = said.away_since else {
            said.away_since = Some(now);
            said.reminded = Some(now);
            return match said.reached.take() {
                None => log::warn!("{self}: not reached ({trouble}); it is tried again"),
                Some((last, told)) if last >= told => log::warn!(
                    "{self}: gone ({trouble}); all that it has told of is here, up to {last}"
                ),
                Some((last, told)) => log::warn!(
                    "{self}: gone ({trouble}); it has told of {told}, and {last} is the last here"
                ),
            };
        };
        if said
            .reminded
            .is_none_or(|at| now >= at + FOLLOW_REMIND_INTERVAL)
        {
            said.reminded = Some(now);
            let minutes = now.saturating_duration_since(since).as_secs() / 60;
            log::warn!("{self}: not reached for {minutes} minutes ({trouble})");
        }
    }
}

/// Connects to the first that lets us, in their order, beginning with the one at `first`, which is
/// then the one that did.
fn connect_to_one(
    servers: &[Address],
    first: &mut usize,
    setup: Option<&Setup>,
) -> Result<Line, String> {
    let mut failed = Vec::new();
    for more in 0..servers.len() {
        let at = (*first + more) % servers.len();
        let server = &servers[at];
        match connect(server, setup) {
            Ok(line) => {
                if servers.len() > 1 {
                    log::debug!("follow: {server} is there");
                }
                *first = at;
                return Ok(line);
            }
            Err(error) => failed.push(format!("{server}: {error}")),
        }
    }
    Err(failed.join("; "))
}

/// Which copy it is, in log lines.
impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FollowConfig {
            storage, servers, ..
        } = &self.config;
        let servers: Vec<String> = servers.iter().map(Address::to_string).collect();
        write!(f, "storage {storage:?} follows {}", servers.join(" or "))
    }
}

/// How far it is, in log lines.
struct Copied(Progress);

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Progress {
            transactions,
            records,
            blobs,
            last,
        } = self.0;
        write!(
            f,
            "{transactions} transactions copied ({records} records, {blobs} blobs), up to {last}"
        )
    }
}
