//! A client that knows what it read: every byte, and whether the end was a real end.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::message::Head;
use crate::wire::Wire;

/// A request under construction. Nothing is checked, so that it can be wrong.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    length: bool,
}

impl Request {
    /// A request with a `Host` and, when it gets a body, a `Content-Length`.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: vec![("Host".to_owned(), "gateway.test".to_owned())],
            body: Vec::new(),
            length: method != "GET" && method != "HEAD" && method != "OPTIONS",
        }
    }

    /// `POST target`.
    pub fn post(target: &str) -> Self {
        Self::new("POST", target)
    }

    /// `GET target`.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// Adds an `Idempotency-Key`.
    pub fn key(self, key: &str) -> Self {
        self.header("Idempotency-Key", key)
    }

    /// Adds a header line.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Removes every header of that name.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    /// Leaves the `Content-Length` to the test.
    pub fn no_length(mut self) -> Self {
        self.length = false;
        self
    }

    /// The head alone, its empty line included.
    pub fn head_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.target).into_bytes();
        for (name, value) in &self.headers {
            // Latin-1, so that a test can send any byte.
            bytes.extend(name.chars().map(|c| c as u8));
            bytes.extend(b": ");
            bytes.extend(value.chars().map(|c| c as u8));
            bytes.extend(b"\r\n");
        }
        if self.length {
            bytes.extend(format!("Content-Length: {}\r\n", self.body.len()).bytes());
        }
        bytes.extend(b"\r\n");
        bytes
    }

    /// The whole request.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head_bytes();
        bytes.extend(&self.body);
        bytes
    }
}

/// How a body ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The framing said that it is whole.
    Whole,
    /// No length and no chunks: the connection closed in an orderly way.
    Closed,
    /// The connection ended, or was reset, before the framing said so.
    Broken(String),
}

/// A response as it was read.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status line and headers.
    pub head: Head,
    /// What came of the body.
    pub body: Vec<u8>,
    /// Trailers, in order.
    pub trailers: Vec<(String, String)>,
    /// How the body ended.
    pub end: End,
}

impl Response {
    /// The status code.
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("not JSON ({e}): {:?}", self.text()))
    }

    /// What `Onlyonce-Status` says.
    pub fn mark(&self) -> Option<&str> {
        self.header("onlyonce-status")
    }

    /// The name of the problem, when the body is a problem document.
    pub fn problem(&self) -> Option<String> {
        if self.header("content-type") != Some("application/problem+json") {
            return None;
        }
        let value = self.json();
        let kind = value["type"].as_str()?;
        Some(kind.rsplit('/').next().unwrap_or(kind).to_owned())
    }

    /// Whether the body arrived whole.
    pub fn whole(&self) -> bool {
        matches!(self.end, End::Whole | End::Closed)
    }

    /// Panics unless this is a complete answer with that status.
    #[track_caller]
    pub fn expect_status(&self, status: u16) -> &Self {
        assert_eq!(self.status(), status, "{:?}\n{}", self.head, self.text());
        assert!(self.whole(), "{:?} {:?}", self.end, self.head);
        self
    }

    /// Panics unless this is the problem document of that name, complete and well formed.
    #[track_caller]
    pub fn expect_problem(&self, status: u16, name: &str) -> &Self {
        self.expect_status(status);
        assert_eq!(
            self.problem().as_deref(),
            Some(name),
            "{:?}\n{}",
            self.head,
            self.text()
        );
        let value = self.json();
        assert_eq!(value["status"], u64::from(status));
        for field in ["title", "detail", "next"] {
            assert!(
                value[field].as_str().is_some_and(|s| !s.is_empty()),
                "{field} in {value}"
            );
        }
        self
    }

    /// Panics unless `Onlyonce-Status` is this.
    #[track_caller]
    pub fn expect_mark(&self, mark: &str) -> &Self {
        assert_eq!(self.mark(), Some(mark), "{:?}\n{}", self.head, self.text());
        self
    }

    /// Panics unless both retry headers (OpenAI's and Anthropic's, Stripe's) say this.
    #[track_caller]
    pub fn expect_retry(&self, retry: bool) -> &Self {
        let word = if retry { "true" } else { "false" };
        assert_eq!(self.header("x-should-retry"), Some(word), "{:?}", self.head);
        assert_eq!(
            self.header("stripe-should-retry"),
            Some(word),
            "{:?}",
            self.head
        );
        self
    }
}

/// How much of the body is still to come.
enum Left {
    Nothing,
    Counted(usize),
    Chunks,
    /// Inside a chunk, with so many of its bytes to come.
    Chunk(usize),
    ToClose,
}

/// A connection to the gateway.
pub struct Client {
    wire: Wire,
    head: Head,
    body: Vec<u8>,
    trailers: Vec<(String, String)>,
    left: Left,
    bodiless: bool,
}

impl Client {
    /// Connects.
    pub fn connect(to: SocketAddr) -> Self {
        Self::over(Wire::connect(to))
    }

    /// Talks over a connection that the test made.
    pub fn over(wire: Wire) -> Self {
        Self {
            wire,
            head: Head::default(),
            body: Vec::new(),
            trailers: Vec::new(),
            left: Left::Nothing,
            bodiless: false,
        }
    }

    /// The connection.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Sets how long a read waits.
    pub fn patience(&mut self, limit: Duration) -> &mut Self {
        self.wire.patience(limit);
        self
    }

    /// Sends a request whole.
    pub fn send(&mut self, request: &Request) -> &mut Self {
        self.bodiless = request.method == "HEAD";
        self.send_bytes(&request.bytes())
    }

    /// Sends bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.wire.send(bytes).expect("sending to the gateway");
        self
    }

    /// Sends bytes to a peer that may have hung up already.
    pub fn try_send_bytes(&mut self, bytes: &[u8]) -> &mut Self {
        // The answer may be there before the request is out, and the connection closed.
        let _ = self.wire.send(bytes);
        self
    }

    /// Reads a head, interim ones (1xx) included, and prepares for its body.
    pub fn try_read_head(&mut self) -> io::Result<Head> {
        self.head = self.wire.take_head()?;
        self.body.clear();
        self.trailers.clear();
        let status = self.head.status();
        self.left = if self.bodiless || status < 200 || status == 204 || status == 304 {
            Left::Nothing
        } else if self.head.chunked() {
            Left::Chunks
        } else if let Some(n) = self.head.content_length() {
            Left::Counted(n)
        } else {
            Left::ToClose
        };
        Ok(self.head.clone())
    }

    /// Reads a head; panics when none comes.
    #[track_caller]
    pub fn read_head(&mut self) -> Head {
        match self.try_read_head() {
            Ok(head) => head,
            Err(e) => {
                panic!(
                    "no response head: {e}; got {:?}",
                    String::from_utf8_lossy(&self.wire.take_buffered())
                )
            }
        }
    }

    /// Reads the body until it contains these bytes; panics when it ends before.
    #[track_caller]
    pub fn read_until(&mut self, needle: &str) -> &mut Self {
        while !self
            .body
            .windows(needle.len())
            .any(|w| w == needle.as_bytes())
        {
            let body = String::from_utf8_lossy(&self.body).into_owned();
            match self.step() {
                Ok(true) => {}
                Ok(false) => panic!("the body ended before {needle:?}: {body:?}"),
                Err(e) => panic!("the body broke ({e}) before {needle:?}: {body:?}"),
            }
        }
        self
    }

    /// What came of the body so far.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Reads one more piece of the body; `Ok(false)` when it is whole.
    pub fn step(&mut self) -> io::Result<bool> {
        match self.left {
            Left::Nothing | Left::Counted(0) => {
                self.left = Left::Nothing;
                Ok(false)
            }
            Left::Counted(n) => {
                if self.wire.is_empty() && !self.wire.fill()? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let piece = self.wire.take_at_most(n);
                self.left = Left::Counted(n - piece.len());
                self.body.extend(piece);
                Ok(true)
            }
            Left::ToClose => {
                if self.wire.is_empty() && !self.wire.fill()? {
                    return Ok(false);
                }
                self.body.extend(self.wire.take_buffered());
                Ok(true)
            }
            Left::Chunk(0) => {
                if self.wire.take(2)? != b"\r\n" {
                    return Err(io::Error::other("no line end after a chunk"));
                }
                self.left = Left::Chunks;
                Ok(true)
            }
            Left::Chunk(n) => {
                if self.wire.is_empty() && !self.wire.fill()? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let piece = self.wire.take_at_most(n);
                self.left = Left::Chunk(n - piece.len());
                self.body.extend(piece);
                Ok(true)
            }
            Left::Chunks => self.next_chunk(),
        }
    }

    fn next_chunk(&mut self) -> io::Result<bool> {
        let line = self.wire.take_through(b"\r\n")?;
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        let size = line.split(';').next().unwrap_or("");
        let size = usize::from_str_radix(size, 16)
            .map_err(|_| io::Error::other(format!("chunk size {line:?}")))?;
        if size > 0 {
            self.left = Left::Chunk(size);
            return Ok(true);
        }
        loop {
            let line = self.wire.take_through(b"\r\n")?;
            if line == b"\r\n" {
                self.left = Left::Nothing;
                return Ok(false);
            }
            let line = String::from_utf8_lossy(&line).into_owned();
            let (name, value) = line.split_once(':').expect("a trailer line");
            self.trailers
                .push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// Reads the rest of the body and hands over the response.
    pub fn finish(&mut self) -> Response {
        let closes = matches!(self.left, Left::ToClose);
        let end = loop {
            match self.step() {
                Ok(true) => {}
                Ok(false) if closes => break End::Closed,
                Ok(false) => break End::Whole,
                Err(e) => break End::Broken(e.to_string()),
            }
        };
        Response {
            head: self.head.clone(),
            body: std::mem::take(&mut self.body),
            trailers: std::mem::take(&mut self.trailers),
            end,
        }
    }

    /// Reads a whole response, interim heads skipped.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        while self.read_head().status() < 200 {}
        self.finish()
    }

    /// Sends a request and reads its response.
    #[track_caller]
    pub fn ask(&mut self, request: &Request) -> Response {
        self.send(request).response()
    }

    /// Whether the gateway closes (or resets) this connection without another byte.
    pub fn closed(&mut self) -> bool {
        match self.wire.take_to_end() {
            Ok(rest) => rest.is_empty(),
            Err(e) => matches!(
                e.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ),
        }
    }

    /// Ends the connection by a reset.
    pub fn reset(self) {
        self.wire.reset();
    }
}
