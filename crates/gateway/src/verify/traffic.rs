//! Requests to the gateway, and what came back: the faults of callers are made here.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{timeout, timeout_at};

use super::story::Story;
use super::words::Plan;
use crate::failure::Failure;
use crate::http_client::{Bare, bare, whole};

/// What a client that leaves in the middle of its request waits for its first half to go out.
const HALF: Duration = Duration::from_millis(30);
/// Bytes of an answer that are kept to be shown.
const SHOWN: usize = 200;

/// A SHA-256.
pub(super) type Sha256 = [u8; 32];

/// One client, with connections of its own.
pub(super) struct Caller {
    http: Bare<Sent>,
    plan: Arc<Plan>,
}

/// What came of an attempt.
#[derive(Debug)]
pub(super) enum Got {
    /// An answer with a clean end.
    Whole(Answer),
    /// An answer without one, of this status.
    Broken(u16),
    /// No answer, and why.
    Nothing(String),
    /// The client left.
    Left,
}

/// An answer that came to a clean end.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// What `Onlyonce-Status` says.
    pub(super) mark: Option<String>,
    /// Whether `Idempotent-Replayed` says so.
    pub(super) is_replayed: bool,
    /// Those that may not differ, with the trailers behind them.
    pub(super) headers: Vec<(String, String)>,
    /// Of its body.
    pub(super) sha256: Sha256,
    /// Bytes of its body.
    pub(super) length: u64,
    /// The beginning of its body.
    pub(super) beginning: String,
}

/// An answer whose body is still to be read.
pub(super) struct Opened {
    head: http::response::Parts,
    body: Incoming,
    until: tokio::time::Instant,
}

impl Caller {
    /// A client that has no connection yet.
    pub(super) fn new(plan: Arc<Plan>) -> Result<Self, Failure> {
        Ok(Self {
            http: bare(&plan.target, "--url")?,
            plan,
        })
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn open(&self, story: &Story, another: bool) -> Result<Opened, Got> {
        let until = tokio::time::Instant::now() + self.plan.timeout;
        let body = Sent::whole(story.body(&self.plan, another));
        let sent = self.http.request(self.request(story, body));
        match timeout_at(until, sent).await {
            Ok(Ok(response)) => {
                let (head, body) = response.into_parts();
                Ok(Opened { head, body, until })
            }
            Ok(Err(error)) => Err(Got::Nothing(whole(&error))),
            Err(_) => Err(Got::Nothing(format!("none within {:?}", self.plan.timeout))),
        }
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn ask(&self, story: &Story, another: bool) -> Got {
        match self.open(story, another).await {
            Ok(opened) => self.read(opened, u64::MAX).await,
            Err(got) => got,
        }
    }

    /// Sends a request and leaves after this time, if not before its answer has begun.
    pub(super) async fn leave_early(&self, story: &Story, after: Duration) -> Got {
        match timeout(after, self.open(story, false)).await {
            Ok(Err(got)) => got,
            Ok(Ok(_)) | Err(_) => Got::Left,
        }
    }

    /// Leaves in the middle of its own request.
    pub(super) async fn send_half(&self, story: &Story) -> Got {
        let body = Sent::half(story.body(&self.plan, false));
        let sent = self.http.request(self.request(story, body));
        match timeout(HALF, sent).await {
            Ok(Err(error)) => Got::Nothing(whole(&error)),
            // An answer to a half request is nobody's: what was claimed shows in the ledger.
            Ok(Ok(_)) | Err(_) => Got::Left,
        }
    }

    /// Reads an answer to its end, or leaves once more than `most` bytes of its body are there.
    pub(super) async fn read(&self, opened: Opened, most: u64) -> Got {
        let Opened {
            head,
            mut body,
            until,
        } = opened;
        let status = head.status.as_u16();
        let mut context = digest::Context::new(&digest::SHA256);
        let (mut length, mut beginning) = (0_u64, Vec::new());
        let mut headers = kept(&self.plan, &head.headers);
        loop {
            let frame = match timeout_at(until, body.frame()).await {
                Ok(None) => break,
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(_))) | Err(_) => return Got::Broken(status),
            };
            match frame.into_data() {
                Ok(bytes) => {
                    context.update(&bytes);
                    length += bytes.len() as u64;
                    let room = SHOWN.saturating_sub(beginning.len());
                    beginning.extend_from_slice(&bytes[..room.min(bytes.len())]);
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    headers.extend(kept(&self.plan, &trailers));
                }
            }
            if length > most {
                return Got::Left;
            }
        }
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(context.finish().as_ref());
        Got::Whole(Answer {
            status,
            mark: text_of(&head.headers, "onlyonce-status"),
            is_replayed: text_of(&head.headers, "idempotent-replayed").as_deref() == Some("true"),
            headers,
            sha256,
            length,
            beginning: String::from_utf8_lossy(&beginning).into_owned(),
        })
    }

    fn request(&self, story: &Story, body: Sent) -> Request<Sent> {
        let plan = &self.plan;
        let mut request = Request::new(body);
        *request.method_mut() = plan.method.clone();
        *request.uri_mut() = plan.target.clone();
        let headers = request.headers_mut();
        *headers = plan.headers.clone();
        // A key of hexadecimal digits and dashes is a header's value.
        if let Ok(key) = HeaderValue::from_str(&story.key(plan)) {
            headers.insert(&plan.key_header, key.clone());
            headers.insert("x-verify-key", key);
        }
        if let Some((name, value)) = story.fault.and_then(|fault| plan.faults.get(fault)) {
            headers.append(name, value.clone());
        }
        request
    }
}

impl Opened {
    /// Whether this is an answer of the upstream's, as far as the head tells.
    pub(super) fn is_upstreams(&self) -> bool {
        let mark = text_of(&self.head.headers, "onlyonce-status");
        is_upstreams(mark.as_deref(), self.head.status.as_u16())
    }
}

impl Answer {
    /// Whether this is an answer of the upstream's, and not what a gateway says itself.
    pub(super) fn is_upstreams(&self) -> bool {
        is_upstreams(self.mark.as_deref(), self.status)
    }
}

/// A gateway that marks nothing is taken at its status: what is below 400 came from the upstream.
fn is_upstreams(mark: Option<&str>, status: u16) -> bool {
    match mark {
        Some(mark) => matches!(mark, "executed" | "joined" | "replayed"),
        None => status < 400,
    }
}

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?;
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// The headers that two answers for one key may not differ in.
fn kept(plan: &Plan, headers: &HeaderMap) -> Vec<(String, String)> {
    // What a hop adds, what says how the bytes are framed, and cookies, which are one caller's own.
    let others = [
        "connection",
        "content-length",
        "date",
        "idempotent-replayed",
        "keep-alive",
        "set-cookie",
        "trailer",
        "transfer-encoding",
    ];
    let mut kept: Vec<_> = headers
        .iter()
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str().to_owned(), value)
        })
        .filter(|(name, _)| {
            !name.starts_with("onlyonce-")
                && !others.contains(&name.as_str())
                && !plan.ignored.contains(name)
        })
        .collect();
    // The order of values of one name counts, that of names does not.
    kept.sort_by(|one, other| one.0.cmp(&other.0));
    kept
}

/// A request's body: all of it, or a half that is followed by nothing.
pub(super) struct Sent {
    bytes: Option<Bytes>,
    length: u64,
    is_half: bool,
}

impl Sent {
    fn whole(body: String) -> Self {
        Self {
            length: body.len() as u64,
            bytes: Some(body.into()),
            is_half: false,
        }
    }

    fn half(body: String) -> Self {
        let whole = Bytes::from(body);
        Self {
            length: whole.len() as u64,
            bytes: Some(whole.slice(..whole.len() / 2)),
            is_half: true,
        }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.bytes.take().filter(|bytes| !bytes.is_empty()) {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            // Whoever waits for the rest is dropped.
            None if self.is_half => Poll::Pending,
            None => Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}
