//! The body of an answer on its way to the caller.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};

use super::watch::Watch;
use crate::telemetry::AttemptSpan;

/// Why a body ends before its end. Hyper then breaks the connection or the stream off, so that
/// nobody takes the part for the whole (I5).
pub(super) type Cut = Box<dyn std::error::Error + Send + Sync>;

/// A body that is not in memory as a whole.
pub(super) type Streamed = Pin<Box<dyn Body<Data = Bytes, Error = Cut> + Send>>;

/// The body of an answer.
pub(super) struct Reply {
    content: Content,
    /// Why the body breaks off, once all before that is on its way.
    cut: Option<Cut>,
    /// Held until the answer is out, or given up.
    _busy: Option<Busy>,
    /// Ends with the answer.
    span: Option<AttemptSpan>,
}

enum Content {
    Whole(Bytes),
    Streamed(Streamed),
}

impl Reply {
    /// A body that is there already.
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self {
            content: Content::Whole(bytes),
            cut: None,
            _busy: None,
            span: None,
        }
    }

    /// No body.
    pub(super) fn empty() -> Self {
        Self::whole(Bytes::new())
    }

    /// A body that is still to come.
    pub(super) fn streamed(body: impl Body<Data = Bytes, Error = Cut> + Send + 'static) -> Self {
        Self {
            content: Content::Streamed(Box::pin(body)),
            cut: None,
            _busy: None,
            span: None,
        }
    }

    /// The same, as what a span is about.
    pub(super) fn in_span(response: Response<Self>, mut span: AttemptSpan) -> Response<Self> {
        span.answered(response.status().as_u16());
        response.map(|reply| Self {
            span: Some(span),
            ..reply
        })
    }

    /// The same, noting its end.
    pub(super) fn until_answered(response: Response<Self>, busy: Busy) -> Response<Self> {
        response.map(|reply| Self {
            _busy: Some(busy),
            ..reply
        })
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
        match &mut this.content {
            Content::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Content::Streamed(body) => {
                if let Some(cut) = this.cut.take() {
                    return Poll::Ready(Some(Err(cut)));
                }
                match body.as_mut().poll_frame(cx) {
                    Poll::Ready(Some(Err(cut))) => {
                        // hyper throws away what it has not written yet, maybe the head too. A
                        // caller should see that an answer broke off, and not that none came.
                        this.cut = Some(cut);
                        if let Some(span) = &mut this.span {
                            span.broke();
                        }
                        cx.waker().wake_by_ref();
                        Poll::Pending
                    }
                    other => other,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole(bytes) => bytes.is_empty(),
            Content::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Streamed(body) => body.size_hint(),
        }
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

/// A body that broke off, with what happened.
pub(super) fn cut(what: &'static str) -> Cut {
    Box::new(io::Error::new(io::ErrorKind::UnexpectedEof, what))
}
