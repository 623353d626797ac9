//! An answer on its way into a recording.

use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, DATE};
use http::{Extensions, HeaderMap, HeaderValue, Response};
use http_body::Frame;
use onlyonce_core::{Head, HeaderBlock, UnknownReason};
use onlyonce_http::headers;
use tokio::time::Instant;

use super::recorded::SMALL;
use super::timer::Timer;

/// Where the body of an answer comes from.
pub trait Source: Send {
    /// The next frame; an error where the body broke off.
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UnknownReason>>>;
}

/// What sees a body on its way, and may leave out some of it. `()` does neither.
pub trait Passage: Send {
    /// Takes the next bytes, and gives what is recorded and shown of them.
    fn pass(&mut self, bytes: Bytes) -> Bytes;

    /// What is still to come where the body has ended: nothing, once all is given. An error where the
    /// body was not whole, though its framing says so.
    fn rest(&mut self) -> Result<Bytes, UnknownReason>;

    /// Whether the part of a body that broke off at once is shown: its reader can ask elsewhere for the rest.
    fn is_resumable(&self) -> bool {
        false
    }
}

impl Passage for () {
    fn pass(&mut self, bytes: Bytes) -> Bytes {
        bytes
    }

    fn rest(&mut self) -> Result<Bytes, UnknownReason> {
        Ok(Bytes::new())
    }
}

/// An answer that is to be recorded.
pub struct Incoming<A, P = ()> {
    /// Its head as it is recorded.
    pub head: Head,
    /// Its headers as they came, but for those that never pass.
    pub headers: HeaderMap,
    extensions: Extensions,
    /// What its body goes through.
    pub passage: P,
    source: A,
    allow_set_cookie: bool,
    /// Bytes that were held back, and how the body ended behind them.
    held: Parts,
    ended: Option<Ended>,
    /// Whether the last frame has come.
    is_over: bool,
    trailers: HeaderBlock,
    timer: Timer,
    between_bytes: Duration,
    deadline: Instant,
}

/// How long an answer may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Between two pieces of the body.
    pub between_bytes: Duration,
    /// To its end.
    pub deadline: Instant,
}

/// An answer as it came, for the caller that it was made for: with cookies that no recording has.
#[derive(Debug)]
pub struct Original {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// What the server tells itself of the answer.
    pub extensions: Extensions,
    /// The body, where it came at once. It may be shown only once it is recorded.
    pub whole: Option<Bytes>,
}

/// What of a body came at once.
pub enum Gathered {
    /// All of it, with its trailers.
    Whole(Bytes, HeaderBlock),
    /// Some of it, or nothing yet.
    Part(Bytes),
    /// It broke off.
    Broken(UnknownReason),
}

/// Why there are no more bytes.
pub enum Ended {
    /// The body is whole. Here are its trailers.
    Clean(HeaderBlock),
    /// It broke off.
    Broken(UnknownReason),
}

impl<A: Source, P: Passage> Incoming<A, P> {
    /// Takes the head in, as the headers came, or says why it cannot be recorded.
    pub fn new(
        response: Response<A>,
        allow_set_cookie: bool,
        patience: Patience,
        passage: P,
    ) -> Result<Self, UnknownReason> {
        let (parts, source) = response.into_parts();
        let mut headers = parts.headers;
        headers::from_upstream(&mut headers);
        if !headers.contains_key(DATE)
            && let Some(now) = http_date()
        {
            // Who passes on an answer without a date adds the one of its receipt (RFC 9110 section
            // 6.6.1). Recorded, it is the same for everybody who gets this answer.
            headers.insert(DATE, now);
        }
        Ok(Self {
            head: Head {
                status: parts.status.as_u16(),
                headers: pack(&headers, allow_set_cookie)?,
            },
            headers,
            extensions: parts.extensions,
            passage,
            source,
            allow_set_cookie,
            held: Parts::default(),
            ended: None,
            is_over: false,
            trailers: HeaderBlock::default(),
            timer: Timer::default(),
            between_bytes: patience.between_bytes,
            deadline: patience.deadline,
        })
    }

    /// Makes the recorded head anew, after its headers were changed.
    pub fn repack(&mut self) -> Result<(), UnknownReason> {
        self.head.headers = pack(&self.headers, self.allow_set_cookie)?;
        Ok(())
    }

    /// The answer as it came.
    pub fn original(&mut self, whole: Option<Bytes>) -> Original {
        Original {
            status: self.head.status,
            headers: std::mem::take(&mut self.headers),
            extensions: std::mem::take(&mut self.extensions),
            whole,
        }
    }

    /// Whether it comes event by event.
    pub fn is_stream(&self) -> bool {
        const STREAMS: [&str; 2] = ["text/event-stream", "application/vnd.amazon.eventstream"];
        let kind = self.headers.get(CONTENT_TYPE);
        let kind = kind.map_or(&[][..], |kind| kind.as_bytes());
        STREAMS.iter().any(|stream| {
            let start = kind.get(..stream.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(stream.as_bytes()))
        })
    }

    /// Takes the body in and holds it back, until `enough` says so of what it went through, until its end, or
    /// until there is more of it than of a small answer. [`gather`](Self::gather) and [`next`](Self::next) begin
    /// with what is held.
    pub async fn hold(&mut self, enough: impl Fn(&P) -> bool) {
        while !enough(&self.passage) && self.ended.is_none() && self.held.len() as u64 <= SMALL {
            match self.fresh().await {
                Ok(bytes) => self.held.add(bytes),
                Err(ended) => self.ended = Some(ended),
            }
        }
    }

    /// Takes in what is there at once: most answers are whole by the time that their head is here.
    pub fn gather(&mut self) -> Gathered {
        let mut cx = Context::from_waker(Waker::noop());
        let mut parts = Parts::default();
        while parts.len() as u64 <= SMALL {
            match self.poll_held_or_next(&mut cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(bytes)) => parts.add(bytes),
                Poll::Ready(Err(Ended::Clean(trailers))) => {
                    return Gathered::Whole(parts.joined(), trailers);
                }
                Poll::Ready(Err(Ended::Broken(reason))) if !self.passage.is_resumable() => {
                    return Gathered::Broken(reason);
                }
                Poll::Ready(Err(broken)) => {
                    self.ended = Some(broken);
                    break;
                }
            }
        }
        Gathered::Part(parts.joined())
    }

    /// The next bytes of the body, or its end.
    pub async fn next(&mut self) -> Result<Bytes, Ended> {
        let Some(held) = self.take_held() else {
            return self.fresh().await;
        };
        if held.is_err() {
            // Who reads is to see what came before it sees that there is no more.
            tokio::task::yield_now().await;
        }
        held
    }

    /// What was held back, or the end behind it.
    fn take_held(&mut self) -> Option<Result<Bytes, Ended>> {
        if self.held.len() > 0 {
            return Some(Ok(std::mem::take(&mut self.held).joined()));
        }
        self.ended.take().map(Err)
    }

    /// The next bytes that are not held.
    async fn fresh(&mut self) -> Result<Bytes, Ended> {
        self.timer.clear();
        std::future::poll_fn(|cx| {
            if let Poll::Ready(piece) = self.poll_next(cx) {
                return Poll::Ready(piece);
            }
            if !self.timer.is_set() {
                let silent = Instant::now() + self.between_bytes;
                self.timer.set_at(silent.min(self.deadline));
            }
            self.timer
                .poll(cx)
                .map(|()| Err(Ended::Broken(UnknownReason::TimedOut)))
        })
        .await
    }

    fn poll_held_or_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Ended>> {
        match self.take_held() {
            Some(held) => Poll::Ready(held),
            None => self.poll_next(cx),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Ended>> {
        loop {
            let frame = match self.is_over {
                true => None,
                false => match self.source.poll_frame(cx) {
                    Poll::Ready(frame) => frame,
                    Poll::Pending => return Poll::Pending,
                },
            };
            let frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(reason)) => return Poll::Ready(Err(Ended::Broken(reason))),
                None => {
                    self.is_over = true;
                    return Poll::Ready(match self.passage.rest() {
                        Err(reason) => Err(Ended::Broken(reason)),
                        Ok(rest) if !rest.is_empty() => Ok(rest),
                        Ok(_) => Err(Ended::Clean(std::mem::take(&mut self.trailers))),
                    });
                }
            };
            match frame.into_data() {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => {
                    let shown = self.passage.pass(bytes);
                    if !shown.is_empty() {
                        return Poll::Ready(Ok(shown));
                    }
                }
                Err(frame) => {
                    if let Ok(mut trailers) = frame.into_trailers() {
                        headers::trailers_from_upstream(&mut trailers);
                        match pack(&trailers, false) {
                            Ok(block) => self.trailers = block,
                            Err(reason) => return Poll::Ready(Err(Ended::Broken(reason))),
                        }
                    }
                }
            }
        }
    }
}

/// `headers` as they are recorded.
fn pack(headers: &HeaderMap, allow_set_cookie: bool) -> Result<HeaderBlock, UnknownReason> {
    let recorded = headers::recorded(headers, allow_set_cookie);
    HeaderBlock::pack(recorded).map_err(|_| UnknownReason::BadAnswer)
}

/// Bytes that came in pieces. Most come in one.
#[derive(Default)]
struct Parts {
    first: Bytes,
    rest: BytesMut,
}

impl Parts {
    fn add(&mut self, bytes: Bytes) {
        if self.first.is_empty() {
            self.first = bytes;
        } else {
            self.rest.extend_from_slice(&bytes);
        }
    }

    fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    fn joined(self) -> Bytes {
        if self.rest.is_empty() {
            return self.first;
        }
        let mut all = BytesMut::with_capacity(self.len());
        all.extend_from_slice(&self.first);
        all.extend_from_slice(&self.rest);
        all.freeze()
    }
}

fn http_date() -> Option<HeaderValue> {
    let now = httpdate::fmt_http_date(SystemTime::now());
    HeaderValue::from_str(&now).ok()
}
