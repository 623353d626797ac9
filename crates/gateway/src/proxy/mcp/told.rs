//! The answer to a call on its way to one of its callers: with the caller's own id, and with a word where it
//! breaks off.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use onlyonce_core::UnknownReason;
use onlyonce_http::Status;
use onlyonce_http::mcp::{Answered, Requests, Rewriter};
use onlyonce_http::problem::{Problem, ProblemContext};
use onlyonce_tower::shell::reply::{Cut, Reply};

use super::{Call, executed, is_stream, says_json};

impl Call {
    /// The answer as this call's caller gets it, who got `status`. `None` where it cannot be made this caller's
    /// own.
    pub(in crate::proxy) fn tell(
        self: &Arc<Self>,
        response: Response<Reply>,
        status: Status,
        context: &ProblemContext<'_>,
    ) -> Option<Response<Reply>> {
        let (mut head, body) = response.into_parts();
        let executed = executed(&mut head.headers);
        let (is_stream, is_json) = (is_stream(&head.headers), says_json(&head.headers));
        let Some(retry) = &self.retry else {
            return Some(Response::from_parts(head, body));
        };
        if !is_stream && !is_json {
            return Some(Response::from_parts(head, body));
        }
        let requests = match status {
            Status::Replayed => Requests::LeaveOut,
            _ => Requests::Keep,
        };
        let rewriter = matches!(status, Status::Replayed | Status::Joined)
            .then(|| Rewriter::new(retry.clone(), executed, is_stream, requests));
        if rewriter.is_some() && head.headers.contains_key(CONTENT_ENCODING) {
            return None;
        }
        let body = match (body.into_whole(), rewriter) {
            (Ok(whole), Some(mut rewriter)) => {
                let mut own = rewriter.push(&whole);
                own.append(&mut rewriter.finish());
                if head.headers.contains_key(CONTENT_LENGTH) {
                    head.headers
                        .insert(CONTENT_LENGTH, HeaderValue::from(own.len()));
                }
                Reply::whole(own.into())
            }
            (Ok(whole), None) => Reply::whole(whole),
            (Err(body), rewriter) => {
                if rewriter.is_some() {
                    head.headers.remove(CONTENT_LENGTH);
                }
                let problem = Problem::OutcomeUnknown(UnknownReason::Truncated);
                let broken = problem.to_json_rpc(Some(&retry.id), context);
                Reply::streamed(Told {
                    body,
                    rewriter,
                    answered: self.answered(&head.headers),
                    broken: format!("event: message\ndata: {broken}\n\n").into(),
                    next: None,
                })
            }
        };
        Some(Response::from_parts(head, body))
    }
}

/// A body on its way.
struct Told {
    body: Reply,
    rewriter: Option<Rewriter>,
    /// Follows what the caller has got.
    answered: Option<Answered>,
    /// The event that tells that it broke off.
    broken: Bytes,
    /// What comes after what was given last.
    next: Option<Result<Frame<Bytes>, Cut>>,
}

impl Told {
    fn told(&mut self, bytes: Bytes) -> Frame<Bytes> {
        if let Some(answered) = &mut self.answered {
            answered.see(&bytes);
        }
        Frame::data(bytes)
    }

    /// What the rewriter still holds.
    fn rest(&mut self) -> Option<Frame<Bytes>> {
        let rest = self.rewriter.take()?.finish();
        (!rest.is_empty()).then(|| self.told(rest.into()))
    }

    fn pass(&mut self, bytes: Bytes) -> Option<Frame<Bytes>> {
        let bytes = match &mut self.rewriter {
            Some(rewriter) => rewriter.push(&bytes).into(),
            None => bytes,
        };
        (!bytes.is_empty()).then(|| self.told(bytes))
    }

    /// A break is told in the stream where its reader can take that in, and it stays a break.
    fn broke(&mut self, cut: Cut) -> Result<Frame<Bytes>, Cut> {
        let takes_it = self.answered.as_ref().is_some_and(Answered::takes_an_event);
        if !takes_it {
            return Err(cut);
        }
        self.answered = None;
        self.next = Some(Err(cut));
        Ok(Frame::data(self.broken.clone()))
    }
}

impl Body for Told {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        if let Some(next) = this.next.take() {
            return Poll::Ready(Some(next));
        }
        loop {
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(cut)) => return Poll::Ready(Some(this.broke(cut))),
                None => return Poll::Ready(this.rest().map(Ok)),
            };
            let trailers = match frame.into_data() {
                Ok(bytes) => match this.pass(bytes) {
                    Some(frame) => return Poll::Ready(Some(Ok(frame))),
                    None => continue,
                },
                Err(trailers) => trailers,
            };
            return Poll::Ready(Some(Ok(match this.rest() {
                Some(rest) => {
                    this.next = Some(Ok(trailers));
                    rest
                }
                None => trailers,
            })));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rewriter.is_none() && self.next.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.rewriter {
            Some(_) => SizeHint::default(),
            None => self.body.size_hint(),
        }
    }
}
