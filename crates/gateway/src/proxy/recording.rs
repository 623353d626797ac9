//! An upstream's answer on its way into a recording.

mod stream_end;

use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};
use onlyonce_core::{Head, HeaderBlock, Metered, Record, UnknownReason};
use onlyonce_http::headers;
use onlyonce_ledger::{Asked, End, UsageHider};
use tokio::time::Instant;

use super::exchange::Begun;
use super::lane::Answer;
use super::metering::{Metering, Meters};
use super::recorded::SMALL;
use super::timer::Timer;
use crate::config::{Policy, Route};
use stream_end::StreamEnd;

/// An answer that is to be recorded.
pub(super) struct Incoming {
    /// Its head as it is recorded.
    pub(super) head: Head,
    headers: HeaderMap,
    answer: Answer,
    /// For a stream whose own end is known.
    stream_end: Option<StreamEnd>,
    metering: Option<Metering>,
    /// Where its usage is not shown.
    hider: Option<UsageHider>,
    /// Whether the last frame has come.
    is_over: bool,
    trailers: HeaderBlock,
    timer: Timer,
    between_bytes: std::time::Duration,
    deadline: Instant,
}

/// An answer as it came, for the caller that it was made for: with cookies that no recording has.
pub(super) struct Original {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// The body, where it came at once. It may be shown only once it is recorded.
    pub(super) whole: Option<Bytes>,
}

/// What of a body came at once.
pub(super) enum Gathered {
    /// All of it.
    Whole(Bytes, HeaderBlock),
    /// Some of it, or nothing yet.
    Part(Bytes),
    /// It broke off.
    Broken(UnknownReason),
}

/// Why there are no more bytes.
pub(super) enum Ended {
    /// The body is whole. Here are its trailers.
    Clean(HeaderBlock),
    /// It broke off.
    Broken(UnknownReason),
}

impl Incoming {
    /// Takes the head in, or says why an answer with this head has no outcome.
    pub(super) fn new(
        (response, answer): Begun,
        policy: &Policy,
        deadline: Instant,
    ) -> Result<Self, UnknownReason> {
        if response.status().is_informational() {
            // A switch of protocols that nobody asked for.
            return Err(UnknownReason::BadAnswer);
        }
        if ends_by_close(&response) && !policy.allow_close_delimited {
            return Err(UnknownReason::Truncated);
        }
        let (head, ()) = response.into_parts();
        let mut headers = head.headers;
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
                status: head.status.as_u16(),
                headers: pack(&headers, policy)?,
            },
            stream_end: StreamEnd::of(policy, head.status, &headers),
            headers,
            answer,
            metering: None,
            hider: None,
            is_over: false,
            trailers: HeaderBlock::default(),
            timer: Timer::default(),
            between_bytes: policy.between_bytes_timeout,
            deadline,
        })
    }

    /// Reads on the way what the answer to the call `asked` tells of its use.
    pub(super) fn meter(&mut self, meters: &Meters, route: &Route, asked: Asked<'_>) {
        let status = self.head.status;
        self.metering = Some(Metering::new(meters, route, asked, status, &self.headers));
    }

    /// Leaves out of a stream what it tells of its use, since only the gateway asked for it: it is
    /// metered, and neither recorded nor shown. An answer that comes encoded all the same stays as it
    /// is.
    pub(super) fn hide_usage(&mut self, policy: &Policy) -> Result<(), UnknownReason> {
        let is_success = (200..300).contains(&self.head.status);
        if !is_success || !self.is_stream() || self.headers.contains_key(CONTENT_ENCODING) {
            return Ok(());
        }
        self.hider = Some(UsageHider::default());
        if self.headers.remove(CONTENT_LENGTH).is_some() {
            self.head.headers = pack(&self.headers, policy)?;
        }
        Ok(())
    }

    /// What it has told, once it has ended; `claimed` is the record of its execution.
    pub(super) fn metered(
        &mut self,
        end: End,
        meters: &Meters,
        route: &Route,
        claimed: &Record,
    ) -> Option<Metered> {
        let (tenant, at) = (&claimed.scope.tenant, claimed.claimed_at);
        self.metering.take()?.finish(end, meters, route, tenant, at)
    }

    /// The answer as it came.
    pub(super) fn original(&mut self, whole: Option<Bytes>) -> Original {
        Original {
            status: self.head.status,
            headers: std::mem::take(&mut self.headers),
            whole,
        }
    }

    /// Whether it comes event by event.
    pub(super) fn is_stream(&self) -> bool {
        const STREAMS: [&str; 2] = ["text/event-stream", "application/vnd.amazon.eventstream"];
        let kind = self.headers.get(CONTENT_TYPE);
        let kind = kind.map_or(&[][..], |kind| kind.as_bytes());
        STREAMS.iter().any(|stream| {
            let start = kind.get(..stream.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(stream.as_bytes()))
        })
    }

    /// Takes in what is there at once: most answers are whole by the time that their head is here.
    pub(super) fn gather(&mut self) -> Gathered {
        let mut cx = Context::from_waker(Waker::noop());
        let mut parts = Parts::default();
        while parts.len() as u64 <= SMALL {
            match self.poll_next(&mut cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(bytes)) => parts.add(bytes),
                Poll::Ready(Err(Ended::Clean(trailers))) => {
                    return Gathered::Whole(parts.joined(), trailers);
                }
                Poll::Ready(Err(Ended::Broken(reason))) => return Gathered::Broken(reason),
            }
        }
        Gathered::Part(parts.joined())
    }

    /// The next bytes of the body, or its end.
    pub(super) async fn next(&mut self) -> Result<Bytes, Ended> {
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

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Ended>> {
        loop {
            let frame = match self.is_over {
                true => None,
                false => match self.answer.poll_frame(cx) {
                    Poll::Ready(frame) => frame,
                    Poll::Pending => return Poll::Pending,
                },
            };
            let Some(frame) = frame else {
                self.is_over = true;
                if let Some(mut hider) = self.hider.take() {
                    let rest = hider.finish();
                    if !rest.is_empty() {
                        return Poll::Ready(Ok(rest));
                    }
                }
                if self.stream_end.as_mut().is_some_and(|end| !end.is_whole()) {
                    return Poll::Ready(Err(Ended::Broken(UnknownReason::Truncated)));
                }
                return Poll::Ready(Err(Ended::Clean(std::mem::take(&mut self.trailers))));
            };
            let Ok(frame) = frame else {
                return Poll::Ready(Err(Ended::Broken(UnknownReason::Truncated)));
            };
            match frame.into_data() {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => {
                    if let Some(end) = &mut self.stream_end {
                        end.see(&bytes);
                    }
                    if let Some(metering) = &mut self.metering {
                        metering.see(&bytes);
                    }
                    let shown = match &mut self.hider {
                        Some(hider) => hider.push(bytes),
                        None => bytes,
                    };
                    if !shown.is_empty() {
                        return Poll::Ready(Ok(shown));
                    }
                }
                Err(frame) => {
                    if let Ok(mut trailers) = frame.into_trailers() {
                        headers::trailers_from_upstream(&mut trailers);
                        let Ok(block) = HeaderBlock::pack(headers::recorded(&trailers, false))
                        else {
                            return Poll::Ready(Err(Ended::Broken(UnknownReason::BadAnswer)));
                        };
                        self.trailers = block;
                    }
                }
            }
        }
    }
}

/// `headers` as they are recorded.
fn pack(headers: &HeaderMap, policy: &Policy) -> Result<HeaderBlock, UnknownReason> {
    let recorded = headers::recorded(headers, policy.allow_set_cookie);
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

/// Whether only the end of the connection says where the body ends (RFC 9112 section 6.3): then
/// nobody can tell the end from a break.
fn ends_by_close(response: &Response<()>) -> bool {
    let headers = response.headers();
    response.version() <= Version::HTTP_11
        && !headers.contains_key(CONTENT_LENGTH)
        && !headers.contains_key(TRANSFER_ENCODING)
        && response.status() != StatusCode::NO_CONTENT
        && response.status() != StatusCode::NOT_MODIFIED
}

fn http_date() -> Option<HeaderValue> {
    let now = httpdate::fmt_http_date(std::time::SystemTime::now());
    HeaderValue::from_str(&now).ok()
}
