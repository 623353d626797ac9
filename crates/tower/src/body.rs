//! The bodies that the layer puts in place of others.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::BoxError;
use crate::shell::reply::Reply;

pin_project! {
    /// The body of a request as the service inside of the layer gets it.
    pub struct RequestBody<B> {
        #[pin]
        content: Content<B>,
    }
}

pin_project! {
    #[project = ContentProjected]
    enum Content<B> {
        /// Of a keyed request: it had to be whole before anything was claimed.
        Whole { bytes: Bytes },
        /// Of a request that passes.
        Passed { #[pin] body: B },
    }
}

impl<B> RequestBody<B> {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self {
            content: Content::Whole { bytes },
        }
    }

    pub(crate) fn passed(body: B) -> Self {
        Self {
            content: Content::Passed { body },
        }
    }
}

impl<B: Body<Data = Bytes>> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().content.project() {
            ContentProjected::Whole { bytes } if bytes.is_empty() => Poll::Ready(None),
            ContentProjected::Whole { bytes } => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            ContentProjected::Passed { body } => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole { bytes } => bytes.is_empty(),
            Content::Passed { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole { bytes } => SizeHint::with_exact(bytes.len() as u64),
            Content::Passed { body } => body.size_hint(),
        }
    }
}

pin_project! {
    /// The body of an answer: the service's own where the request passed, else what the recording
    /// gives. It breaks off where the execution did, and never ends cleanly before the record of it is
    /// durable.
    pub struct ResponseBody<B> {
        #[pin]
        answer: Answer<B>,
    }
}

pin_project! {
    #[project = AnswerProjected]
    enum Answer<B> {
        Passed { #[pin] body: B },
        Recorded { body: Reply },
    }
}

impl<B> ResponseBody<B> {
    pub(crate) fn passed(body: B) -> Self {
        Self {
            answer: Answer::Passed { body },
        }
    }

    pub(crate) fn recorded(body: Reply) -> Self {
        Self {
            answer: Answer::Recorded { body },
        }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().answer.project() {
            AnswerProjected::Passed { body } => {
                let frame = body.poll_frame(cx);
                frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
            AnswerProjected::Recorded { body } => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.answer {
            Answer::Passed { body } => body.is_end_stream(),
            Answer::Recorded { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.answer {
            Answer::Passed { body } => body.size_hint(),
            Answer::Recorded { body } => body.size_hint(),
        }
    }
}
