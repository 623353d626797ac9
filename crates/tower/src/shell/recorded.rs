//! An answer from a recording, finished or still growing.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::header::TRAILER;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use onlyonce_core::{Head, HeaderBlock};
use onlyonce_engine::{Broken, Frame as Piece, Reader};
use onlyonce_store::Store;

use super::audience::Follower;
use super::reply::{Cut, Reply};

/// A finished body up to so many bytes is put together before the answer begins, so that head and
/// body leave in one write.
pub const SMALL: u64 = 64 * 1024;

/// The answer that `head` begins and `reader` goes on with; `None` where the head is no head.
pub fn response<S: Store>(
    head: &Head,
    reader: Reader<S>,
    follower: Option<Follower>,
) -> Option<Response<Reply>> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).ok()?;
    *response.headers_mut() = header_map(&head.headers)?;
    let body = body(response.headers(), reader, follower);
    Some(response.map(|()| body))
}

/// The body that `reader` gives. `follower` stays for as long as it does.
pub fn body<S: Store>(headers: &HeaderMap, reader: Reader<S>, follower: Option<Follower>) -> Reply {
    let mut body = Recorded {
        reader,
        early: None,
        next: None,
        has_trailers: headers.contains_key(TRAILER),
        follower,
    };
    match body.whole_if_small() {
        Some(bytes) => Reply::whole(bytes),
        None => Reply::streamed(body),
    }
}

/// The fields of a recorded block.
pub fn header_map(block: &HeaderBlock) -> Option<HeaderMap> {
    let bytes = block.as_bytes();
    let mut map = HeaderMap::with_capacity(16);
    for (name, value) in block.iter() {
        let name = HeaderName::from_bytes(name).ok()?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(value)).ok()?;
        map.append(name, value);
    }
    Some(map)
}

struct Recorded<S: Store> {
    reader: Reader<S>,
    /// Bytes that were read before the body was asked for.
    early: Option<Bytes>,
    /// What ended that reading, still to be told: trailers, or a break.
    next: Option<Result<Piece, Broken>>,
    has_trailers: bool,
    follower: Option<Follower>,
}

impl<S: Store> Recorded<S> {
    /// The whole body where it is finished, small and at hand.
    fn whole_if_small(&mut self) -> Option<Bytes> {
        let finished = self.reader.ticket().expires_at.is_some();
        if !finished || self.has_trailers || self.reader.remaining()? > SMALL {
            return None;
        }
        let mut cx = Context::from_waker(Waker::noop());
        let mut all = BytesMut::new();
        let mut one = Bytes::new();
        loop {
            match self.reader.poll_next(&mut cx) {
                Poll::Ready(None) if all.is_empty() => return Some(one),
                Poll::Ready(None) => return Some(all.freeze()),
                Poll::Ready(Some(Ok(Piece::Data(bytes)))) if one.is_empty() => one = bytes,
                Poll::Ready(Some(Ok(Piece::Data(bytes)))) => {
                    if all.is_empty() {
                        all.extend_from_slice(&one);
                    }
                    all.extend_from_slice(&bytes);
                }
                other => {
                    self.next = match other {
                        Poll::Ready(next) => next,
                        Poll::Pending => None,
                    };
                    let read = if all.is_empty() { one } else { all.freeze() };
                    self.early = Some(read).filter(|read| !read.is_empty());
                    return None;
                }
            }
        }
    }
}

impl<S: Store> Body for Recorded<S> {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        if let Some(follower) = &mut this.follower {
            follower.look();
        }
        if let Some(early) = this.early.take() {
            return Poll::Ready(Some(Ok(Frame::data(early))));
        }
        let next = match this.next.take() {
            Some(next) => Some(next),
            None => ready!(this.reader.poll_next(cx)),
        };
        Poll::Ready(match next {
            None => None,
            Some(Err(broken)) => Some(Err(broken.into())),
            Some(Ok(Piece::Data(bytes))) => Some(Ok(Frame::data(bytes))),
            Some(Ok(Piece::Trailers(block))) => match header_map(&block) {
                Some(trailers) => Some(Ok(Frame::trailers(trailers))),
                None => Some(Err("the recorded trailers cannot be read".into())),
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        self.early.is_none() && self.next.is_none() && self.reader.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        if self.has_trailers {
            // HTTP/1.1 sends trailers only behind chunks.
            return SizeHint::default();
        }
        let early = self.early.as_ref().map_or(0, Bytes::len) as u64;
        match self.reader.remaining() {
            Some(remaining) => SizeHint::with_exact(early + remaining),
            None => SizeHint::default(),
        }
    }
}
