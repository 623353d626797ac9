//! The body of an answer on its way to the caller, and what ends with it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Response, Version};
use http_body::{Body, Frame, SizeHint};
use onlyonce_tower::shell::reply;
pub(super) use onlyonce_tower::shell::reply::{Cut, cut};

use super::watch::Watch;
use crate::telemetry::AttemptSpan;

/// The body of an answer.
pub(crate) struct Reply {
    body: reply::Reply,
    /// Held until the answer is out, or given up.
    busy: Option<Busy>,
    /// Whether only the connection's end tells where this ends.
    is_unframed: bool,
    /// Ends with the answer.
    span: Option<AttemptSpan>,
}

impl Reply {
    /// A body that is there already.
    pub(super) fn whole(bytes: Bytes) -> Self {
        reply::Reply::whole(bytes).into()
    }

    /// No body.
    pub(super) fn empty() -> Self {
        reply::Reply::empty().into()
    }

    /// A body that is still to come.
    pub(super) fn streamed(body: impl Body<Data = Bytes, Error = Cut> + Send + 'static) -> Self {
        reply::Reply::streamed(body).into()
    }

    /// The same, as what a span is about.
    pub(super) fn in_span(response: Response<Self>, mut span: AttemptSpan) -> Response<Self> {
        span.answered(response.status().as_u16());
        response.map(|reply| Self {
            span: Some(span),
            ..reply
        })
    }

    /// The same, noting its end; the answer to a request of HTTP `version`.
    pub(super) fn until_answered(
        response: Response<Self>,
        busy: Busy,
        version: Version,
    ) -> Response<Self> {
        let has_length = response.body().size_hint().exact().is_some()
            || response.headers().contains_key(CONTENT_LENGTH);
        let is_unframed = version < Version::HTTP_11 && !has_length;
        if is_unframed {
            busy.0.note_unframed(true);
        }
        response.map(|reply| Self {
            busy: Some(busy),
            is_unframed,
            ..reply
        })
    }
}

impl From<reply::Reply> for Reply {
    fn from(body: reply::Reply) -> Self {
        Self {
            body,
            busy: None,
            is_unframed: false,
            span: None,
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let (Poll::Ready(Some(Err(_))), Some(span)) = (&polled, &mut this.span) {
            span.broke();
        }
        let is_whole = match &polled {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(_))) => this.body.is_end_stream(),
            _ => false,
        };
        if let (true, true, Some(busy)) = (this.is_unframed, is_whole, &this.busy) {
            busy.0.note_unframed(false);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Held while a request is being answered.
pub(super) struct Busy(Arc<Watch>);

impl Busy {
    pub(super) fn new(watch: &Arc<Watch>) -> Self {
        watch.begin();
        Self(Arc::clone(watch))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.end();
    }
}
