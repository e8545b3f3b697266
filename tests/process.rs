//! The real binary: it starts, says so, serves, heeds signals, and ends with a status that tells
//! why.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory for one test, gone when that ends.
struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("standby-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A configuration file with these lines in `<zeo>`, and with what follows it.
    fn configuration(&self, zeo: &str, rest: &str) -> String {
        let path = self.path("zeo.conf");
        let data = self.path("Data.fs");
        let text = format!(
            "<zeo>\n  address 127.0.0.1:0\n{zeo}\n</zeo>\n<filestorage>\n  path {}\n\
             </filestorage>\n{rest}\n",
            data.display()
        );
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_standbyd"));
        command
            .current_dir(&self.0)
            .env_remove("RUST_LOG")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("ZEO_MSGPACK")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts a server on the data file and any port.
    fn serve(&self) -> Server {
        Server::start(self.command().args(["-a", "127.0.0.1:0", "-f", "Data.fs"]))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running server, killed at the end if it is still there.
struct Server {
    child: Child,
    /// Lines of its standard error.
    log: Receiver<String>,
    /// What was taken from `log`, for messages.
    seen: Vec<String>,
}

impl Server {
    fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, log) = mpsc::channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // The test may be over.
                let _ = sender.send(line);
            }
        });
        Self {
            child,
            log,
            seen: Vec::new(),
        }
    }

    /// Waits for a line of the log with `text` in it; what follows `text` there.
    fn logs(&mut self, text: &str) -> String {
        loop {
            let Ok(line) = self.log.recv_timeout(PATIENCE) else {
                panic!("no {text:?} in {:#?}", self.seen);
            };
            self.seen.push(line.clone());
            if let Some((_, rest)) = line.split_once(text) {
                return rest.to_owned();
            }
        }
    }

    /// The address it listens on, of which the log tells.
    fn address(&mut self) -> SocketAddr {
        self.logs("listening on ").parse().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The exit status.
    fn ends(&mut self) -> Option<i32> {
        let status = within(PATIENCE, || self.child.try_wait().unwrap());
        status.expect("it goes on").code()
    }

    fn stdout(&mut self) -> String {
        let mut text = String::new();
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks until there is an answer. For what nobody reports: an end, a file that appears.
fn within<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let step = Duration::from_millis(5);
    for _ in 0..limit.as_millis() / step.as_millis() {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        thread::sleep(step);
    }
    None
}

/// A client that speaks just enough of the pickle encoding for one commit.
struct Client(TcpStream);

impl Client {
    /// Connects; the server speaks first.
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self(stream);
        assert_eq!(client.frame(), b"Z5");
        client
    }

    /// Registers; the last tid.
    fn register(&mut self) -> Vec<u8> {
        self.send(b"Z5");
        self.send(&call(1, false, "register", b"X\x01\0\0\x001K\0\x86"));
        tid_at_end(&self.frame())
    }

    /// Asks for storage 2; the answer.
    fn register_wrongly(&mut self) -> Vec<u8> {
        self.send(b"Z5");
        self.send(&call(1, false, "register", b"X\x01\0\0\x002K\0\x86"));
        self.frame()
    }

    /// Commits one object; its tid.
    fn commit(&mut self) -> Vec<u8> {
        self.send(&call(0, true, "tpc_begin", b"(K\x07C\0C\0}NX\x01\0\0\0 t"));
        self.send(&call(
            0,
            true,
            "storea",
            b"(C\x08\0\0\0\0\0\0\0\0C\x08\0\0\0\0\0\0\0\0C\x04dataK\x07t",
        ));
        self.send(&call(2, false, "vote", b"K\x07\x85"));
        self.frame();
        self.send(&call(3, false, "tpc_finish", b"K\x07\x85"));
        loop {
            let frame = self.frame();
            if !frame.windows(4).any(|window| window == b"info") {
                return tid_at_end(&frame);
            }
        }
    }

    fn send(&mut self, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap();
        self.0
            .write_all(&[&len.to_be_bytes(), data].concat())
            .unwrap();
    }

    fn frame(&mut self) -> Vec<u8> {
        let mut len = [0; 4];
        self.0.read_exact(&mut len).unwrap();
        let mut data = vec![0; u32::from_be_bytes(len) as usize];
        self.0.read_exact(&mut data).unwrap();
        data
    }

    fn is_hung_up(&mut self) -> bool {
        self.0.read(&mut [0]).is_ok_and(|len| len == 0)
    }
}

/// A pickle of `(id, flag, name, arguments)`; the arguments are pickled already.
fn call(id: u8, asynchronous: bool, name: &str, arguments: &[u8]) -> Vec<u8> {
    let flag = if asynchronous { 0x88 } else { 0x89 };
    let mut message = vec![0x80, 3, b'(', b'K', id, flag, b'X'];
    message.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
    message.extend(name.as_bytes());
    message.extend(arguments);
    message.extend(b"t.");
    message
}

/// The tid that a reply consists of: `C`, its length, eight bytes, TUPLE, STOP.
fn tid_at_end(reply: &[u8]) -> Vec<u8> {
    let (_, end) = reply.split_last_chunk::<12>().unwrap();
    assert_eq!(
        (&end[..2], &end[10..]),
        (&b"C\x08"[..], &b"t."[..]),
        "{reply:x?}"
    );
    end[2..10].to_vec()
}

#[test]
fn it_answers_a_monitor_that_asks_whether_all_is_well() {
    let place = Place::new("ruok");
    let mut server = place.serve();
    let mut client = Client::connect(server.address());
    client.send(b"ruok");
    let answer = String::from_utf8(client.frame()).unwrap();
    assert!(answer.starts_with("{\"1\":"), "{answer}");
    assert!(client.is_hung_up());
}

#[test]
fn sigterm_and_sigint_close_clients_save_the_index_and_end_with_0() {
    for (name, signal) in [("term", Signal::TERM), ("int", Signal::INT)] {
        let place = Place::new(name);
        let mut server = place.serve();
        let mut client = Client::connect(server.address());
        assert_eq!(client.register(), [0; 8]);
        let tid = client.commit();
        server.signal(signal);
        assert_eq!(server.ends(), Some(0), "{:#?}", server.seen);
        assert!(client.is_hung_up());
        assert!(place.path("Data.fs.index").exists());

        let mut again = place.serve();
        assert_eq!(Client::connect(again.address()).register(), tid);
    }
}

#[test]
fn who_asks_for_a_storage_that_there_is_not_is_logged_once() {
    let place = Place::new("unknown");
    let mut server = place.serve();
    let address = server.address();
    for _ in 0..2 {
        let answer = Client::connect(address).register_wrongly();
        let expected = b"unknown storage: 2";
        assert!(answer.windows(expected.len()).any(|it| it == expected));
    }
    assert_eq!(server.logs(" refused ("), "unknown storage: \"2\")");
    server.signal(Signal::TERM);
    server.logs("stopped");
    let refused = server.seen.iter().filter(|it| it.contains("refused"));
    assert_eq!(refused.count(), 1);
}

#[test]
fn sighup_without_a_log_file_ends_with_1_as_runzeo_does() {
    let place = Place::new("hup");
    let mut server = place.serve();
    server.address();
    server.signal(Signal::HUP);
    assert_eq!(server.ends(), Some(1));
}

#[test]
fn sighup_and_sigusr2_reopen_the_log_file() {
    let place = Place::new("reopen");
    let log = place.path("zeo.log");
    let section = format!(
        "<eventlog>\n<logfile>\npath {}\n</logfile>\n</eventlog>",
        log.display()
    );
    let configuration = place.configuration("", &section);
    let mut server = Server::start(place.command().args(["-C", &configuration]));
    wait_for_text(&log, "listening on ");
    for (n, signal) in [Signal::HUP, Signal::USR2].into_iter().enumerate() {
        fs::rename(&log, place.path(&format!("old-{n}.log"))).unwrap();
        server.signal(signal);
        wait_for_text(&log, "reopened");
    }
    server.signal(Signal::TERM);
    assert_eq!(server.ends(), Some(0));
}

#[test]
fn sigusr2_without_a_log_file_changes_nothing() {
    let place = Place::new("usr2");
    let mut server = place.serve();
    let address = server.address();
    server.signal(Signal::USR2);
    Client::connect(address).register();
    server.signal(Signal::TERM);
    assert_eq!(server.ends(), Some(0));
}

#[test]
fn the_pid_file_is_there_while_it_serves() {
    let place = Place::new("pid");
    let path = place.path("zeo.pid");
    let configuration = place.configuration(&format!("pid-filename {}", path.display()), "");
    let mut server = Server::start(place.command().args(["-C", &configuration]));
    wait_for_text(&path, &format!("{}\n", server.child.id()));
    server.signal(Signal::TERM);
    assert_eq!(server.ends(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_service_manager_hears_of_readiness_and_of_the_end() {
    let place = Place::new("notify");
    let socket = UnixDatagram::bind(place.path("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut buf = [0; 1000];
        let len = socket.recv(&mut buf).unwrap();
        String::from_utf8_lossy(&buf[..len]).trim_end().to_owned()
    };
    let mut server = Server::start(
        place
            .command()
            .env("NOTIFY_SOCKET", place.path("notify"))
            .args(["-a", "127.0.0.1:0", "-f", "Data.fs"]),
    );
    assert_eq!(hear(), "READY=1");
    Client::connect(server.address()).register();
    server.signal(Signal::TERM);
    assert_eq!(hear(), "STOPPING=1");
    assert_eq!(server.ends(), Some(0));
}

#[test]
fn a_wrong_command_line_or_an_address_in_use_ends_with_2() {
    let place = Place::new("usage");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for arguments in [
        &["--no-such-option"][..],
        &["-C", "missing.conf"],
        &["-a", &taken, "-f", "Data.fs"],
    ] {
        let mut server = Server::start(place.command().args(arguments));
        assert_eq!(server.ends(), Some(2), "{arguments:?}");
        assert!(
            server.log.recv_timeout(PATIENCE).is_ok(),
            "{arguments:?}: no word about it"
        );
    }
    assert!(!place.path("Data.fs").exists(), "a file was made in vain");
}

#[test]
fn a_storage_that_cannot_be_opened_ends_with_3() {
    let place = Place::new("storage");
    fs::write(
        place.path("damaged.fs"),
        b"this is not a data file, but it is long enough",
    )
    .unwrap();
    let damaged = &mut place.command();
    let mut server = Server::start(damaged.args(["-a", "127.0.0.1:0", "-f", "damaged.fs"]));
    assert_eq!(server.ends(), Some(3));
    server.logs("damaged.fs");

    let mut first = place.serve();
    first.address();
    let mut second = place.serve();
    assert_eq!(second.ends(), Some(3));
    second.logs("Data.fs");
}

#[test]
fn without_arguments_it_says_how_to_connect() {
    if TcpListener::bind("127.0.0.1:8100").is_err() {
        eprintln!("SKIPPED: port 8100 is in use");
        return;
    }
    let place = Place::new("quick-start");
    let mut server = Server::start(&mut place.command());
    let address = server.address();
    assert_eq!(address.to_string(), "127.0.0.1:8100");
    Client::connect(address).register();
    server.signal(Signal::TERM);
    assert_eq!(server.ends(), Some(0));
    assert!(
        server
            .stdout()
            .contains("ZEO.connection(('127.0.0.1', 8100))")
    );
    assert!(place.path("var/Data.fs").exists());
}

fn wait_for_text(path: &Path, text: &str) {
    let found = within(PATIENCE, || {
        fs::read_to_string(path)
            .ok()
            .filter(|contents| contents.contains(text))
    });
    assert!(found.is_some(), "no {text:?} in {}", path.display());
}
