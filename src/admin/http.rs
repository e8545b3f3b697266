//! The server's side of one connection of HTTP/1.1: bytes in, one request at a time, bytes out.
//!
//! Only what a monitor, a load balancer, a browser or `standbyctl` sends is understood: GET, HEAD
//! and OPTIONS of the pages, and POST of commands with a `Content-Length`. Everything is bounded:
//! the head by [`HTTP_HEAD_LEN_MAX`], the body by [`HTTP_BODY_LEN_MAX`], and no request is looked
//! at before the one before it has been answered.

use bytes::{Buf, Bytes, BytesMut};

use super::command::{Command, Refused, Refusing};
use super::{Status, metrics};
use crate::limits::{HTTP_BODY_LEN_MAX, HTTP_HEAD_LEN_MAX, HTTP_HEADERS_MAX};
use crate::out_queue::OutQueue;

/// What a connection may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Pages
    Read,
    /// Pages and commands
    All,
}

/// A connection. [`Self::receive`] what comes, [`Self::poll`] after it, and [`Self::answer`] each
/// that is asked; write [`Self::output`], and close when [`Self::is_done`].
#[derive(Debug)]
pub struct Http {
    access: Access,
    input: BytesMut,
    out: OutQueue,
    /// The head of the request that is being received, once it has come.
    head: Option<Head>,
    /// What was asked and not answered.
    pending: Option<Pending>,
    /// Requests so far
    count: u64,
    /// Nothing is taken any more.
    is_over: bool,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Names it in its answer.
    pub id: u64,
    /// What
    pub what: What,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// To see something
    Get(Page),
    /// To do something
    Post(Command),
}

/// What there is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// All, in JSON
    Status,
    /// All, for Prometheus
    Metrics,
    /// Whether the server turns
    Live,
    /// Whether it serves anybody
    Ready,
    /// Whether it is open for writers
    Primary,
    /// Whether it serves readers, and is not the primary
    Replica,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code of HTTP
    pub code: u16,
    /// The type of the body
    pub content_type: &'static str,
    /// It
    pub body: Bytes,
}

#[derive(Debug)]
struct Head {
    method: Method,
    /// The path, without what is behind a question mark
    path: String,
    body_len: usize,
    keeps: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Get,
    /// An answer without its body.
    Head,
    /// The same, and nothing of it is announced: load balancers ask so.
    Options,
    Post,
}

#[derive(Debug)]
struct Pending {
    id: u64,
    method: Method,
    keeps: bool,
}

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Page {
    const ALL: [(&'static str, Self); 6] = [
        ("/status", Self::Status),
        ("/metrics", Self::Metrics),
        ("/live", Self::Live),
        ("/ready", Self::Ready),
        ("/primary", Self::Primary),
        ("/replica", Self::Replica),
    ];

    fn at(path: &str) -> Option<Self> {
        let path = if path == "/" { "/status" } else { path };
        let found = Self::ALL.iter().find(|(of, _)| *of == path);
        found.map(|(_, page)| *page)
    }

    /// What it shows of a status.
    pub fn answer(self, status: &Status) -> Answer {
        let is_so = match self {
            Self::Metrics => {
                return Answer {
                    code: 200,
                    content_type: TEXT,
                    body: metrics(status).into(),
                };
            }
            Self::Status | Self::Live => true,
            Self::Ready => status.is_ready(),
            Self::Primary => status.is_primary(),
            Self::Replica => status.is_replica(),
        };
        Answer::json(if is_so { 200 } else { 503 }, status)
    }
}

impl Answer {
    /// With something in JSON.
    pub fn json(code: u16, what: &impl serde::Serialize) -> Self {
        // A structure of ours can be written.
        let mut body = serde_json::to_vec_pretty(what).unwrap_or_default();
        body.push(b'\n');
        Self {
            code,
            content_type: JSON,
            body: body.into(),
        }
    }

    /// To a command that was obeyed.
    pub fn done(what: &str) -> Self {
        let done = super::Done {
            done: what.to_owned(),
            report: None,
        };
        Self::json(200, &done)
    }

    /// To `verify`.
    pub fn report(report: super::Report) -> Self {
        let done = super::Done {
            done: report.to_string(),
            report: Some(report),
        };
        Self::json(200, &done)
    }

    /// To a request that is refused.
    pub fn refused(refused: &Refused) -> Self {
        let code = match refused.reason {
            Refusing::BadRequest => 400,
            Refusing::Conflict | Refusing::NotPrimary => 409,
            Refusing::NotOffered => 501,
            Refusing::Busy => 503,
        };
        Self::json(code, refused)
    }

    fn wrong(code: u16, error: &str) -> Self {
        let refused = Refused {
            error: error.to_owned(),
            ..Refused::default()
        };
        Self::json(code, &refused)
    }
}

impl Http {
    /// A connection that nothing has come from.
    pub fn new(access: Access) -> Self {
        Self {
            access,
            input: BytesMut::new(),
            out: OutQueue::default(),
            head: None,
            pending: None,
            count: 0,
            is_over: false,
        }
    }

    /// Takes what has come. To be called only as long as [`Self::wants_input`].
    pub fn receive(&mut self, data: &[u8]) {
        if !self.is_over {
            self.input.extend_from_slice(data);
        }
    }

    /// Whether more is to be read: not while a request is being answered, so that nobody can make
    /// this grow. What came in one read with a request stays within that read.
    pub fn wants_input(&self) -> bool {
        !self.is_over && self.pending.is_none() && self.out.is_empty()
    }

    /// The next request. To be called after [`Self::receive`] and after [`Self::answer`], until
    /// there is none.
    pub fn poll(&mut self) -> Option<Asked> {
        while self.pending.is_none() && !self.is_over {
            if self.head.is_none() {
                match self.read_head() {
                    Ok(Some(head)) => self.head = Some(head),
                    Ok(None) => return None,
                    Err((code, why)) => {
                        self.refuse(code, &why);
                        return None;
                    }
                }
            }
            let body_len = self.head.as_ref().map_or(0, |head| head.body_len);
            if self.input.len() < body_len {
                return None;
            }
            let head = self.head.take()?;
            let body = self.input.split_to(body_len);
            self.count += 1;
            self.pending = Some(Pending {
                id: self.count,
                method: head.method,
                keeps: head.keeps,
            });
            match self.understand(&head, &body) {
                Ok(what) => {
                    let id = self.count;
                    return Some(Asked { id, what });
                }
                Err(answer) => self.answer(self.count, &answer),
            }
        }
        None
    }

    /// Queues the answer to a request. One to none is ignored.
    pub fn answer(&mut self, id: u64, answer: &Answer) {
        let Some(pending) = self.pending.take_if(|pending| pending.id == id) else {
            return;
        };
        self.is_over |= !pending.keeps;
        self.write(answer, pending.method);
    }

    /// What waits for the socket.
    pub const fn output(&mut self) -> &mut OutQueue {
        &mut self.out
    }

    /// Whether a request waits for its answer.
    pub const fn is_waiting(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether the connection is to be closed: all that there was to say has been written.
    pub fn is_done(&self) -> bool {
        self.is_over && self.out.is_empty()
    }

    /// The head of a request, if it has come as a whole.
    fn read_head(&mut self) -> Result<Option<Head>, (u16, String)> {
        let mut headers = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let len = match request.parse(&self.input) {
            Ok(httparse::Status::Complete(len)) if len <= HTTP_HEAD_LEN_MAX => len,
            Ok(httparse::Status::Partial) if self.input.len() <= HTTP_HEAD_LEN_MAX => {
                return Ok(None);
            }
            Ok(_) | Err(httparse::Error::TooManyHeaders) => {
                return Err((431, "the head of the request is too long".to_owned()));
            }
            Err(error) => return Err((400, format!("this is no request of HTTP: {error}"))),
        };
        let head = Head::read(&request)?;
        let expects = request
            .headers
            .iter()
            .any(|header| header.name.eq_ignore_ascii_case("expect"));
        self.input.advance(len);
        if expects && self.input.len() < head.body_len {
            self.out
                .push(Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n"));
        }
        Ok(Some(head))
    }

    /// What a request asks for; the answer, if that is clear.
    fn understand(&self, head: &Head, body: &[u8]) -> Result<What, Answer> {
        let page = Page::at(&head.path);
        let name = head.path.trim_start_matches('/');
        let is_command = Command::NAMES.contains(&name);
        match (head.method, page) {
            (Method::Get | Method::Head | Method::Options, Some(page)) => Ok(What::Get(page)),
            (Method::Get | Method::Head | Method::Options, None) if is_command => {
                Err(Answer::wrong(405, "a command is given by POST"))
            }
            (Method::Post, _) if self.access == Access::Read => Err(Answer::wrong(
                405,
                "commands are taken at the Unix socket only",
            )),
            (Method::Post, Some(_)) => Err(Answer::wrong(405, "a page is seen by GET")),
            (Method::Post, None) if is_command => {
                let command = Command::parse(name, body);
                command
                    .map(What::Post)
                    .map_err(|error| Answer::wrong(400, &error))
            }
            _ => Err(Answer::wrong(404, "there is no such page or command")),
        }
    }

    /// The request is not understood, and neither would be what comes behind it.
    fn refuse(&mut self, code: u16, error: &str) {
        self.is_over = true;
        self.input.clear();
        self.write(&Answer::wrong(code, error), Method::Get);
    }

    fn write(&mut self, answer: &Answer, method: Method) {
        let Answer {
            code,
            content_type,
            body,
        } = answer;
        let reason = reason(*code);
        let connection = if self.is_over { "close" } else { "keep-alive" };
        let allow = match (code, self.access) {
            (405, Access::Read) => "Allow: GET, HEAD, OPTIONS\r\n",
            (405, Access::All) => "Allow: GET, HEAD, OPTIONS, POST\r\n",
            _ => "",
        };
        let head = format!(
            "HTTP/1.1 {code} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\n{allow}Connection: {connection}\r\n\r\n",
            if method == Method::Options {
                0
            } else {
                body.len()
            }
        );
        self.out.push(head.into());
        if !matches!(method, Method::Head | Method::Options) {
            self.out.push(body.clone());
        }
    }
}

impl Head {
    fn read(request: &httparse::Request<'_, '_>) -> Result<Self, (u16, String)> {
        let wrong = |code, why: &str| Err((code, why.to_owned()));
        let method = match request.method.unwrap_or_default() {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "OPTIONS" => Method::Options,
            "POST" => Method::Post,
            _ => return wrong(405, "the method is none of GET, HEAD, OPTIONS and POST"),
        };
        let path = request.path.unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default().to_owned();
        let mut body_len = None;
        let mut keeps = request.version == Some(1);
        for header in request.headers.iter() {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            let value = str::from_utf8(header.value).unwrap_or_default().trim();
            if is("transfer-encoding") {
                return wrong(411, "a body needs a Content-Length");
            } else if is("content-length") {
                let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
                let Some(len) = value.parse().ok().filter(|_| is_number) else {
                    return wrong(400, "the Content-Length is no length");
                };
                if body_len.is_some_and(|known| known != len) {
                    return wrong(400, "there are two lengths");
                }
                body_len = Some(len);
            } else if is("connection") {
                let has = |word| {
                    value
                        .split(',')
                        .any(|it| it.trim().eq_ignore_ascii_case(word))
                };
                keeps = (keeps || has("keep-alive")) && !has("close");
            }
        }
        match body_len {
            None if method == Method::Post => wrong(411, "a body needs a Content-Length"),
            Some(len) if len > HTTP_BODY_LEN_MAX => wrong(413, "the body is too long"),
            _ => Ok(Self {
                method,
                path,
                body_len: body_len.unwrap_or_default(),
                keeps,
            }),
        }
    }
}

const fn reason(code: u16) -> &'static str {
    match code {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::testing::example;
    use super::*;

    fn http() -> Http {
        Http::new(Access::All)
    }

    fn taken(http: &mut Http) -> String {
        let out = std::mem::take(http.output()).into_bytes();
        String::from_utf8(out.to_vec()).unwrap()
    }

    /// What one request on a new connection gives: what was asked, or the answer.
    fn one(access: Access, request: &str) -> Result<What, String> {
        let mut http = Http::new(access);
        http.receive(request.as_bytes());
        match http.poll() {
            Some(asked) => Ok(asked.what),
            None => Err(taken(&mut http)),
        }
    }

    fn get(path: &str) -> Result<What, String> {
        one(
            Access::Read,
            &format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"),
        )
    }

    fn post(path: &str, body: &str) -> String {
        let len = body.len();
        format!("POST {path} HTTP/1.1\r\nContent-Length: {len}\r\n\r\n{body}")
    }

    #[test]
    fn pages_are_asked_for_by_their_paths() {
        for (path, page) in Page::ALL {
            assert_eq!(get(path), Ok(What::Get(page)));
        }
        assert_eq!(get("/"), Ok(What::Get(Page::Status)));
        assert_eq!(get("/live?verbose=1"), Ok(What::Get(Page::Live)));
        assert!(get("/banana").unwrap_err().starts_with("HTTP/1.1 404 "));
        assert!(get("/swap").unwrap_err().starts_with("HTTP/1.1 405 "));
    }

    #[test]
    fn commands_are_taken_where_they_may_be_given() {
        let request = post("/drain", r#"{"on": true}"#);
        let drain = Command::Drain { on: true };
        assert_eq!(one(Access::All, &request), Ok(What::Post(drain)));
        let refused = one(Access::Read, &request).unwrap_err();
        assert!(refused.starts_with("HTTP/1.1 405 "), "{refused}");
        assert!(refused.contains("\r\nAllow: GET, HEAD, OPTIONS\r\n"));
        let wrong = one(Access::All, &post("/drain", "{}")).unwrap_err();
        assert!(wrong.starts_with("HTTP/1.1 400 "), "{wrong}");
        assert!(wrong.contains("a field on is needed"));
        let page = one(Access::All, &post("/status", "")).unwrap_err();
        assert!(page.starts_with("HTTP/1.1 405 "), "{page}");
    }

    #[test]
    fn requests_come_in_any_pieces_one_after_the_other() {
        let requests = format!(
            "{}GET /live HTTP/1.1\r\n\r\nGET /ready HTTP/1.1\r\nConnection: close\r\n\r\nGET",
            post("/swap", r#"{"to": "beta"}"#)
        );
        for step in [1, 2, 3, 7, requests.len()] {
            let mut http = http();
            let mut asked = Vec::new();
            for piece in requests.as_bytes().chunks(step) {
                http.receive(piece);
                while let Some(it) = http.poll() {
                    assert!(http.poll().is_none(), "one at a time");
                    assert!(!http.wants_input());
                    asked.push(it.what.clone());
                    http.answer(it.id, &Answer::done("it"));
                }
            }
            assert_eq!(asked.len(), 3);
            assert_eq!(asked[2], What::Get(Page::Ready));
            let answers = taken(&mut http);
            assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 3);
            assert_eq!(answers.matches("Connection: close\r\n").count(), 1);
            assert!(http.is_done());
        }
    }

    #[test]
    fn old_clients_are_hung_up_on_unless_they_ask() {
        for (head, keeps) in [
            ("GET /live HTTP/1.0\r\n\r\n", false),
            ("GET /live HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
            ("GET /live HTTP/1.1\r\n\r\n", true),
            ("GET /live HTTP/1.1\r\nConnection: x, Close\r\n\r\n", false),
        ] {
            let mut http = http();
            http.receive(head.as_bytes());
            let asked = http.poll().unwrap();
            http.answer(asked.id, &Page::Live.answer(&Status::default()));
            assert!(!http.is_done(), "there is something to be written");
            taken(&mut http);
            assert_eq!(http.is_done(), !keeps, "{head}");
        }
    }

    #[test]
    fn head_and_options_get_no_body() {
        for method in ["HEAD", "OPTIONS"] {
            let mut http = http();
            http.receive(format!("{method} /primary HTTP/1.1\r\n\r\n").as_bytes());
            let asked = http.poll().unwrap();
            assert_eq!(asked.what, What::Get(Page::Primary));
            http.answer(asked.id, &Page::Primary.answer(&Status::default()));
            let answer = taken(&mut http);
            assert!(
                answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
                "{answer}"
            );
            assert!(answer.ends_with("\r\n\r\n"));
            // Who is told of a body without HEAD waits for it.
            let has_none = answer.contains("\r\nContent-Length: 0\r\n");
            assert_eq!(has_none, method == "OPTIONS", "{answer}");
        }
    }

    #[test]
    fn who_waits_for_leave_to_send_a_body_gets_it() {
        let mut http = http();
        let head = "POST /drain HTTP/1.1\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\n";
        http.receive(head.as_bytes());
        assert_eq!(http.poll(), None);
        assert_eq!(taken(&mut http), "HTTP/1.1 100 Continue\r\n\r\n");
        http.receive(br#"{"on":true}"#);
        assert!(http.poll().is_some());
    }

    #[test]
    fn what_is_wrong_ends_the_connection() {
        let long = format!("GET /live HTTP/1.1\r\nX: {}", "x".repeat(HTTP_HEAD_LEN_MAX));
        let many = format!("GET /live HTTP/1.1\r\n{}\r\n", "X: x\r\n".repeat(100));
        for (request, code) in [
            ("\0", 400),
            ("GET /live HTTP/9.1\r\n\r\n", 400),
            ("PUT /swap HTTP/1.1\r\n\r\n", 405),
            ("POST /swap HTTP/1.1\r\n\r\n", 411),
            (
                "POST /swap HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                411,
            ),
            ("POST /swap HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            ("POST /swap HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
            ("POST /swap HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", 413),
            (
                "POST /swap HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                400,
            ),
            (
                "POST /swap HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                400,
            ),
            (&long, 431),
            (&many, 431),
        ] {
            let mut http = http();
            http.receive(request.as_bytes());
            assert_eq!(http.poll(), None, "{request}");
            let answer = taken(&mut http);
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {code} ")),
                "{request}: {answer}"
            );
            assert!(answer.contains("\r\nConnection: close\r\n"));
            assert!(http.is_done());
            http.receive(b"GET /live HTTP/1.1\r\n\r\n");
            assert_eq!(http.poll(), None, "it is over");
        }
    }

    #[test]
    fn no_damaged_request_does_harm() {
        let request = post("/member", r#"{"node": "beta", "action": "add"}"#);
        for at in 0..request.len() {
            for bit in 0..8 {
                let mut damaged = request.clone().into_bytes();
                damaged[at] ^= 1 << bit;
                let mut http = http();
                http.receive(&damaged);
                while let Some(asked) = http.poll() {
                    http.answer(asked.id, &Answer::done(""));
                }
            }
            let mut http = http();
            http.receive(&request.as_bytes()[..at]);
            assert_eq!(http.poll(), None);
            assert!(http.wants_input());
        }
    }

    #[test]
    fn an_answer_that_nobody_waits_for_is_dropped() {
        let mut http = http();
        http.answer(1, &Answer::done("it"));
        assert!(http.output().is_empty());
        http.receive(b"GET /live HTTP/1.1\r\n\r\n");
        let asked = http.poll().unwrap();
        http.answer(asked.id + 1, &Answer::done("another"));
        assert!(http.output().is_empty() && http.is_waiting());
    }

    #[test]
    fn pages_have_the_code_of_what_they_are_asked() {
        let primary = example();
        let code = |page: Page, status: &Status| page.answer(status).code;
        let codes = Page::ALL.map(|(_, page)| code(page, &primary));
        assert_eq!(codes, [200, 200, 200, 200, 200, 503]);
        let nobody = Status::default();
        let codes = Page::ALL.map(|(_, page)| code(page, &nobody));
        assert_eq!(codes, [200, 200, 200, 503, 503, 503]);
        let body = Page::Primary.answer(&nobody).body;
        let shown: Status = serde_json::from_slice(&body).unwrap();
        assert_eq!(shown, nobody);
    }
}
