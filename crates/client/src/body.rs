//! The body of an answer: what was read of it within the attempt, and the rest as it comes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;

/// The body of an answer.
///
/// One of up to [`AnswerBody::WHOLE`] bytes that is no event stream was read to its end within the
/// attempt: if it breaks off, that is a failed attempt, and tried again. A longer one, and an event
/// stream, is handed on as it comes, and breaks off where the connection does; then call again with the
/// same action.
pub struct AnswerBody<B> {
    read: VecDeque<Frame<Bytes>>,
    rest: Option<Pin<Box<B>>>,
}

impl<B: Body<Data = Bytes>> AnswerBody<B> {
    /// What is read of a body before it is handed on, in bytes: 8 MiB.
    pub const WHOLE: usize = 8 << 20;

    /// A body of which nothing was read.
    pub(crate) fn passing(body: B) -> Self {
        Self {
            read: VecDeque::new(),
            rest: Some(Box::pin(body)),
        }
    }

    /// Reads `body` to its end, or until it is longer than [`AnswerBody::WHOLE`].
    pub(crate) async fn read(body: B) -> Result<Self, B::Error> {
        let mut answer = Self::passing(body);
        let mut length = 0;
        while let Some(rest) = &mut answer.rest {
            match rest.frame().await.transpose()? {
                Some(frame) => {
                    length += frame.data_ref().map_or(0, Bytes::len);
                    answer.read.push_back(frame);
                }
                None => answer.rest = None,
            }
            if length > Self::WHOLE {
                break;
            }
        }
        Ok(answer)
    }

    /// The bytes, where the whole body was read.
    pub(crate) fn whole(&self) -> Option<Vec<u8>> {
        let bytes = || self.read.iter().filter_map(Frame::data_ref).flatten();
        self.rest.is_none().then(|| bytes().copied().collect())
    }
}

impl<B: Body<Data = Bytes>> Body for AnswerBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(frame) = self.read.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match &mut self.rest {
            Some(rest) => rest.as_mut().poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.as_ref().is_none_or(|rest| rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.iter().filter_map(Frame::data_ref);
        let read: u64 = read.map(|bytes| bytes.len() as u64).sum();
        let rest = match &self.rest {
            Some(rest) => rest.size_hint(),
            None => SizeHint::with_exact(0),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(read.saturating_add(rest.lower()));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(read)) {
            hint.set_upper(upper);
        }
        hint
    }
}
