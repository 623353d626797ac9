//! The body of an answer on its way to the caller.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Why a body ends before its end. The server then breaks the connection or the stream off, so that
/// nobody takes the part for the whole (I5).
pub type Cut = Box<dyn std::error::Error + Send + Sync>;

/// A body that broke off, with what happened.
pub fn cut(what: &'static str) -> Cut {
    Box::new(io::Error::new(io::ErrorKind::UnexpectedEof, what))
}

/// The body of an answer: all of it, or as it comes.
pub struct Reply {
    content: Content,
    /// Why the body breaks off, once all before that is on its way.
    cut: Option<Cut>,
}

enum Content {
    Whole(Bytes),
    Streamed(Pin<Box<dyn Body<Data = Bytes, Error = Cut> + Send>>),
}

impl Reply {
    /// A body that is there already.
    pub fn whole(bytes: Bytes) -> Self {
        Self {
            content: Content::Whole(bytes),
            cut: None,
        }
    }

    /// No body.
    pub fn empty() -> Self {
        Self::whole(Bytes::new())
    }

    /// The body, where it is there already.
    pub fn into_whole(self) -> Result<Bytes, Self> {
        match self.content {
            Content::Whole(bytes) => Ok(bytes),
            Content::Streamed(_) => Err(self),
        }
    }

    /// A body that is still to come.
    pub fn streamed(body: impl Body<Data = Bytes, Error = Cut> + Send + 'static) -> Self {
        Self {
            content: Content::Streamed(Box::pin(body)),
            cut: None,
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
