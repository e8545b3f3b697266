//! The real binary: its sockets, its commands, its end.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use standby::group::spread::wire::{
    AuthChoice, Connect, DaemonItem, DaemonStream, Delivery, Endian, Frame, METHOD_NULL,
    MessageType, Name, Reject,
};

/// Longer than anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A groupd with a directory, both gone when this ends.
struct Groupd {
    child: Child,
    place: PathBuf,
    /// What it has said of where it listens.
    addresses: Vec<String>,
}

impl Groupd {
    fn start(test: &str, args: &[&str]) -> Self {
        let place = std::env::temp_dir().join(format!("groupd-{}-{test}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        let mut child = command()
            .current_dir(&place)
            .args(["--control", "./control"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let lines = out.lines().map(Result::unwrap);
        let lines = lines.take_while(|line| line != "ready");
        let addresses = lines
            .map(|line| line.rsplit_once(": ").unwrap().1.to_owned())
            .collect();
        Self {
            child,
            place,
            addresses,
        }
    }

    /// A session at its Unix socket.
    fn client(&self, user: &str) -> Client<UnixStream> {
        self.client_at("socket", user)
    }

    fn client_at(&self, socket: &str, user: &str) -> Client<UnixStream> {
        let connect = || {
            let stream = UnixStream::connect(self.place.join(socket)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        };
        Client::new(connect, user)
    }

    fn tell(&self, words: &[&str]) -> Output {
        let mut command = command();
        command
            .current_dir(&self.place)
            .args(["--tell", "./control"]);
        command.args(words).output().unwrap()
    }

    /// The exit status when it has ended.
    fn status(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Groupd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.place);
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_groupd"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command.stderr(Stdio::null());
    command
}

/// A session of a client.
struct Client<S> {
    stream: S,
    input: DaemonStream,
    name: Name,
}

impl<S: Read + Write> Client<S> {
    fn new(connect: impl Fn() -> S, user: &str) -> Self {
        let mut client = loop {
            let mut client = Self {
                stream: connect(),
                input: DaemonStream::new(),
                name: Name::from_field([0; 32]),
            };
            let hello = Connect::new(user.as_bytes()).encode();
            let said = client.stream.write_all(&hello);
            match client.next() {
                Some(DaemonItem::AuthList(_)) => break client,
                // On a busy machine a second may pass before something is said.
                None => drop(said),
                other => panic!("{other:?}"),
            }
        };
        let choice = AuthChoice::new(&[METHOD_NULL]);
        client.stream.write_all(&choice.0).unwrap();
        match client.next() {
            Some(DaemonItem::Accept(accept)) => client.name = accept.private_name,
            other => panic!("{other:?}"),
        }
        client
    }

    /// What comes next, or `None` at the end of the stream.
    fn next(&mut self) -> Option<DaemonItem> {
        let mut buf = vec![0; 64 * 1024];
        loop {
            if let Some(item) = self.input.next().unwrap() {
                return Some(item.what);
            }
            let len = self.stream.read(&mut buf).unwrap_or(0);
            if len == 0 {
                return None;
            }
            self.input.receive(&buf[..len]);
        }
    }

    fn frame(&mut self) -> Frame {
        match self.next() {
            Some(DaemonItem::Frame(frame)) => frame,
            other => panic!("{other:?}"),
        }
    }

    /// The members of the next view, and what has caused it.
    fn view(&mut self) -> (MessageType, Vec<String>) {
        let frame = self.frame();
        assert_eq!(frame.header.delivery(), Delivery::Membership);
        let cause = MessageType(frame.header.message_type.0 & 0xf00);
        (cause, frame.names().map(|name| name.to_string()).collect())
    }

    fn request(&mut self, message_type: MessageType, to: &str, data: &[u8]) {
        let to = Name::new(to.as_bytes()).unwrap();
        let data = data.to_vec().into();
        let frame = Frame::new(Endian::Little, message_type, self.name, &[to], 0, data);
        self.stream.write_all(&frame.encode()).unwrap();
    }

    fn join(&mut self, group: &str) -> (MessageType, Vec<String>) {
        self.request(MessageType::JOIN, group, b"");
        self.view()
    }

    fn send(&mut self, to: &str, data: &[u8]) {
        self.request(MessageType::AGREED, to, data);
    }

    fn message(&mut self) -> Vec<u8> {
        let frame = self.frame();
        assert_eq!(frame.header.delivery(), Delivery::Regular);
        frame.data.to_vec()
    }
}

#[test]
fn both_kinds_of_sockets_are_one_daemon() {
    for small in [&[][..], &["--small-writes"]] {
        let args = [&["--listen", "127.0.0.1:0", "--unix", "./socket"], small].concat();
        let groupd = Groupd::start(&format!("both{}", small.len()), &args);
        let mut alice = groupd.client("alice");
        let connect = || {
            let stream = TcpStream::connect(&groupd.addresses[0]).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        };
        let mut bob = Client::new(connect, "bob");
        alice.join("room");
        let expected = vec!["#alice#localhost".to_owned(), "#bob#localhost".to_owned()];
        let joined = (MessageType::CAUSED_BY_JOIN, expected);
        assert_eq!(bob.join("room"), joined);
        assert_eq!(alice.view(), joined);
        let long = vec![5; 143_000];
        alice.send("room", &long);
        assert!(alice.message() == long && bob.message() == long);
        // What it has sent before it ended its half is taken.
        bob.send("room", b"bye");
        bob.stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(alice.message(), b"bye");
        let (cause, _) = alice.view();
        assert_eq!(cause, MessageType::CAUSED_BY_DISCONNECT);
        while bob.next().is_some() {}
    }
}

#[test]
fn commands_are_done_and_answered() {
    let mut groupd = Groupd::start(
        "commands",
        &[
            "--daemon",
            "d1=./socket",
            "--daemon",
            "d2=./two",
            "--detection",
            "1",
        ],
    );
    let mut alice = groupd.client("alice");
    let mut bob = groupd.client_at("two", "bob");
    alice.join("room");
    bob.join("room");
    alice.view();
    assert!(groupd.tell(&["partition", "d1", "d2"]).status.success());
    for client in [&mut bob.frame(), &mut alice.frame()] {
        assert_eq!(client.header.delivery(), Delivery::Transition);
    }
    assert_eq!(alice.view().1, ["#alice#d1"]);
    assert_eq!(bob.view().1, ["#bob#d2"]);
    let list = groupd.tell(&["list"]).stdout;
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    assert_eq!(list["parts"][1]["nodes"][0], "d2");
    assert_eq!(list["parts"][1]["groups"][0]["members"][0], "#bob#d2");
    assert_eq!(list["daemons"][0]["sessions"][0]["name"], "#alice#d1");
    assert!(groupd.tell(&["merge"]).status.success());
    assert_eq!(alice.view().1, ["#alice#d1", "#bob#d2"]);
    let nothing = groupd.tell(&["merge"]).stdout;
    assert_eq!(nothing, b"nothing changes\n");
    for wrong in [&["kick", "zoe"][..], &["fly"], &["delay", "soon"], &[]] {
        assert_eq!(groupd.tell(wrong).status.code(), Some(1), "{wrong:?}");
    }
    assert!(groupd.tell(&["kick", "alice"]).status.success());
    assert_eq!(alice.next(), None);
    assert!(groupd.tell(&["quit"]).status.success());
    assert_eq!(groupd.status(), Some(0));
    assert!(!groupd.place.join("socket").exists() && !groupd.place.join("control").exists());
    assert_eq!(groupd.tell(&["list"]).status.code(), Some(5));
}

#[test]
fn a_session_that_is_stalled_hears_nothing_and_says_nothing() {
    let groupd = Groupd::start("stall", &["--unix", "./socket"]);
    let mut alice = groupd.client("alice");
    let mut bob = groupd.client("bob");
    alice.join("room");
    bob.join("room");
    alice.view();
    groupd.tell(&["stall", "bob"]);
    bob.send("room", b"from bob");
    alice.send("room", b"from alice");
    assert_eq!(alice.message(), b"from alice");
    let list = groupd.tell(&["list"]).stdout;
    let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
    assert_eq!(list["daemons"][0]["sessions"][1]["queued"], 1);
    bob.stream.set_nonblocking(true).unwrap();
    assert!(bob.stream.read(&mut [0]).is_err());
    bob.stream.set_nonblocking(false).unwrap();
    groupd.tell(&["resume", "bob"]);
    assert_eq!(bob.message(), b"from alice");
    assert_eq!(bob.message(), b"from bob");
    assert_eq!(alice.message(), b"from bob");
}

#[test]
fn a_slow_reader_is_killed_and_others_go_on() {
    let groupd = Groupd::start("slow", &["--unix", "./socket"]);
    let mut slow = groupd.client("slow");
    slow.join("feed");
    let mut feeder = groupd.client("feeder");
    feeder.join("feed");
    let data = [7; 2000];
    let mut count = 0;
    let mut told = None;
    while told.is_none() {
        feeder.send("feed", &data);
        let frame = feeder.frame();
        if frame.header.delivery() == Delivery::Membership {
            told = Some(frame);
        } else {
            count += 1;
        }
        assert!(count < 10_000, "nobody is killed, or nobody is told");
    }
    let cause = MessageType::CAUSED_BY_DISCONNECT;
    assert!(told.unwrap().header.message_type.intersects(cause));
    assert!((1000..3000).contains(&count), "{count}");
    let mut got = 0;
    while slow.next().is_some() {
        got += 1;
    }
    // What was queued is lost.
    assert!(got <= count - 999, "{got} of {count}");
}

#[test]
fn a_flood_of_senders_who_wait_for_each_other_comes_to_all_in_one_order() {
    const ROUNDS: u32 = 100;
    // Of each sender in a round; less in sum than may wait for a session.
    const MESSAGES: u32 = 300;
    let groupd = Groupd::start("flood", &["--unix", "./socket"]);
    let mut clients: Vec<_> = (0..3).map(|n| groupd.client(&format!("c{n}"))).collect();
    for n in 0..clients.len() {
        clients[n].join("feed");
        for client in &mut clients[..n] {
            client.view();
        }
    }
    let barrier = Arc::new(Barrier::new(clients.len()));
    let play = |(n, mut client): (usize, Client<UnixStream>)| {
        let barrier = barrier.clone();
        thread::spawn(move || {
            let mut order = Vec::new();
            for round in 0..ROUNDS {
                for number in 0..MESSAGES {
                    let mut data = vec![n as u8; 200];
                    data[..4].copy_from_slice(&(round * MESSAGES + number).to_be_bytes());
                    client.send("feed", &data);
                }
                for _ in 0..3 * MESSAGES {
                    let data = client.message();
                    let number = u32::from_be_bytes(data[..4].try_into().unwrap());
                    order.push((data[4], number));
                }
                barrier.wait();
            }
            order
        })
    };
    let threads: Vec<_> = clients.into_iter().enumerate().map(play).collect();
    let mut orders = threads.into_iter().map(|thread| thread.join().unwrap());
    let first = orders.next().unwrap();
    assert!(orders.all(|order| order == first));
    for sender in 0..3 {
        let of = first.iter().filter(|it| it.0 == sender).map(|it| it.1);
        assert!(of.eq(0..ROUNDS * MESSAGES));
    }
}

#[test]
fn a_silent_connection_holds_up_the_next_for_a_while() {
    let groupd = Groupd::start("silent", &["--unix", "./socket"]);
    let mut silent = UnixStream::connect(groupd.place.join("socket")).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    // It gets in when the other is given up.
    groupd.client("alice");
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
}

#[test]
fn refusals_are_one_byte_and_the_end() {
    let groupd = Groupd::start("refusals", &["--unix", "./socket"]);
    let _alice = groupd.client("alice");
    for (user, reject) in [
        (&b"alice"[..], Reject::NotUnique),
        (b"al ice", Reject::IllegalName),
        (b"01234567890", Reject::IllegalName),
    ] {
        let mut stream = UnixStream::connect(groupd.place.join("socket")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&Connect::new(user).encode()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, [reject.code().cast_unsigned()]);
    }
}

#[test]
fn signals_end_it() {
    for (signal, status) in [(Signal::TERM, 0), (Signal::INT, 0), (Signal::HUP, 1)] {
        let mut groupd = Groupd::start("signals", &["--unix", "./socket"]);
        let mut alice = groupd.client("alice");
        groupd.signal(signal);
        assert_eq!(groupd.status(), Some(status));
        assert_eq!(alice.next(), None);
        assert!(!groupd.place.join("socket").exists());
    }
}

#[test]
fn what_is_wrong_with_the_command_line_or_an_address_ends_it() {
    let groupd = Groupd::start("wrong", &["--unix", "./socket"]);
    let socket = groupd.place.join("socket");
    let run = |args: &[&str]| {
        let output = command()
            .args(args)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), error)
    };
    let (status, error) = run(&["--fly"]);
    assert_eq!(status, Some(2));
    assert!(
        error.starts_with("groupd: ") && error.contains("--fly"),
        "{error}"
    );
    let (status, error) = run(&["--unix", socket.to_str().unwrap()]);
    assert_eq!(status, Some(2));
    assert!(error.contains("in use"), "{error}");
    let help = command().arg("--help").output().unwrap();
    let version = command().arg("--version").output().unwrap();
    assert!(help.status.success() && help.stdout.starts_with(b"groupd"));
    assert_eq!(
        version.stdout,
        concat!("groupd ", env!("CARGO_PKG_VERSION"), "\n").as_bytes()
    );
}
