//! The client's side of HTTP, as much of it as is needed: one request, one answer.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use standby::admin::Command;

/// Where a node is.
#[derive(Debug)]
pub(crate) enum Client {
    /// At a Unix socket
    Unix(PathBuf),
    /// At an address of TCP
    Tcp(String),
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status code
    pub code: u16,
    /// The body
    pub body: Vec<u8>,
}

/// Why there is none.
#[derive(Debug)]
pub(crate) enum ClientError {
    /// Nobody is there, or nobody who answers a question.
    Unreachable(String),
    /// Somebody is there who is no server of ours.
    Strange(String),
    /// A command was given, and there is no answer to it.
    NoAnswer(String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "no answer of {why}"),
            Self::Strange(why) => write!(f, "what answers is not understood: {why}"),
            Self::NoAnswer(why) => write!(
                f,
                "nobody knows how the command ended: there is no answer of {why}"
            ),
        }
    }
}

/// How long connecting, and a page, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a command may take that does not move data.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of an answer at most.
const ANSWER_LEN_MAX: u64 = 64 << 20;

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Client {
    /// A page.
    pub(crate) fn get(&self, path: &str) -> Result<Answer, ClientError> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: standby\r\nConnection: close\r\n\r\n");
        self.ask(&request, Some(PATIENCE))
    }

    /// Gives a command, and waits until it has ended.
    pub(crate) fn post(&self, command: &Command) -> Result<Answer, ClientError> {
        let (name, body) = (command.name(), command.body());
        let request = format!(
            "POST /{name} HTTP/1.1\r\nHost: standby\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let patience = match command {
            Command::Swap { .. }
            | Command::Promote { .. }
            | Command::Member { .. }
            | Command::Pack { .. }
            | Command::Drain { .. } => Some(COMMAND_PATIENCE),
            // They take as long as the data are large.
            Command::Verify { .. } | Command::Backup { .. } | Command::Fetch { .. } => None,
        };
        match self.ask(&request, patience) {
            Err(ClientError::Strange(why)) => Err(ClientError::NoAnswer(why)),
            answer => answer,
        }
    }

    fn ask(&self, request: &str, patience: Option<Duration>) -> Result<Answer, ClientError> {
        let unreachable = |error| ClientError::Unreachable(self.complaint(&error));
        let mut stream = self.connect(patience).map_err(unreachable)?;
        let failed = |error, patience| self.failed(&error, patience);
        let written = stream.write_all(request.as_bytes());
        written.map_err(|error| ClientError::Unreachable(failed(error, Some(PATIENCE))))?;
        let mut answer = Vec::new();
        let read = stream.take(ANSWER_LEN_MAX).read_to_end(&mut answer);
        // A server that leaves something of ours unread breaks the connection behind its answer.
        match (understand(&answer), read) {
            (Some(answer), _) => Ok(answer),
            (None, Err(error)) if request.starts_with("GET") => {
                Err(ClientError::Unreachable(failed(error, patience)))
            }
            (None, Err(error)) => Err(ClientError::NoAnswer(failed(error, patience))),
            (None, Ok(_)) => Err(ClientError::Strange(format!(
                "{self}: {} bytes that are no answer of HTTP",
                answer.len()
            ))),
        }
    }

    /// What is wrong with somebody who takes connections.
    fn failed(&self, error: &io::Error, patience: Option<Duration>) -> String {
        match (error.kind(), patience) {
            // What the system says when the time is up.
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(patience)) => format!(
                "{self}: it takes connections, and has not answered for {} s: the server hangs, \
                 or its disk does",
                patience.as_secs()
            ),
            _ => self.complaint(error),
        }
    }

    /// An error, and what it means.
    fn complaint(&self, error: &io::Error) -> String {
        let meaning = match (self, error.kind()) {
            (Self::Unix(path), io::ErrorKind::NotFound) if path.is_relative() => {
                "; a relative path begins where standbyctl is started, and for the server where \
                 that was: is it running, and is this its directory?"
            }
            (Self::Unix(_), io::ErrorKind::NotFound) => "; the server has not been started",
            (_, io::ErrorKind::ConnectionRefused) => "; the server is not running",
            (Self::Unix(_), io::ErrorKind::PermissionDenied) => {
                "; root and the server's own user may connect"
            }
            _ => "",
        };
        format!("{self}: {error}{meaning}")
    }

    fn connect(&self, patience: Option<Duration>) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(patience)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Box::new(stream))
            }
            Self::Tcp(address) => {
                let mut last = io::Error::other("the name has no address");
                for address in address.to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, PATIENCE) {
                        Ok(stream) => {
                            stream.set_read_timeout(patience)?;
                            stream.set_write_timeout(Some(PATIENCE))?;
                            return Ok(Box::new(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// An answer, if it is all there.
fn understand(bytes: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_len) = head.parse(bytes).ok()? else {
        return None;
    };
    let mut headers = head.headers.iter();
    let len = headers.find(|header| header.name.eq_ignore_ascii_case("content-length"))?;
    let len: usize = str::from_utf8(len.value).ok()?.trim().parse().ok()?;
    let body = bytes[head_len..].get(..len)?;
    Some(Answer {
        code: head.code?,
        body: body.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_connections_and_is_silent_hangs() {
        let client = Client::Unix("s".into());
        let silent = io::Error::from(io::ErrorKind::WouldBlock);
        let hangs = client.failed(&silent, Some(PATIENCE));
        assert_eq!(
            hangs,
            "s: it takes connections, and has not answered for 10 s: the server hangs, or its \
             disk does"
        );
        let broken = io::Error::from(io::ErrorKind::ConnectionReset);
        let gone = client.failed(&broken, Some(PATIENCE));
        assert_eq!(gone, "s: connection reset");
    }

    #[test]
    fn an_answer_is_understood_when_it_is_all_there() {
        let bytes = b"HTTP/1.1 409 Conflict\r\nContent-Length: 4\r\n\r\nbusy";
        for len in 0..bytes.len() {
            assert!(understand(&bytes[..len]).is_none(), "{len}");
        }
        let answer = understand(bytes).unwrap();
        assert_eq!((answer.code, &answer.body[..]), (409, &b"busy"[..]));
        assert!(understand(b"SSH-2.0-banana\r\n").is_none());
        assert!(understand(b"HTTP/1.1 200 OK\r\n\r\nno length").is_none());
    }
}
