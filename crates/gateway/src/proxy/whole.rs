//! A body whose end has to be said.
//!
//! hyper takes a reset with `NO_ERROR` for the end of an HTTP/2 body, since a server may so ask a client to send no more
//! of a request that it has answered (RFC 9113 section 8.1). Half a message ends like that too: proxies reset whatever
//! breaks off at their other side with that code.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// A body as it comes in, which ends only where its sender says so.
pub(super) struct Whole {
    body: Incoming,
    is_http2: bool,
    /// Its sender has said that it ends here: with its last data, or with trailers, which are the last of all. A reset
    /// that comes behind that says no more.
    has_ended: bool,
}

impl Whole {
    pub(super) fn new(body: Incoming, version: Version) -> Self {
        Self {
            body,
            is_http2: version == Version::HTTP_2,
            has_ended: false,
        }
    }

    /// Whether the end that hyper tells was said by the sender, or follows from a length.
    fn has_ended(&self) -> bool {
        !self.is_http2
            || self.has_ended
            || self.body.is_end_stream()
            || self.body.size_hint().exact().is_some_and(|left| left == 0)
    }
}

/// Why a body has no end.
#[derive(Debug)]
pub(super) enum Broken {
    /// What hyper says.
    Hyper(hyper::Error),
    /// Its stream was reset, as if nothing were missing.
    Reset,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hyper(error) => error.fmt(f),
            Self::Reset => f.write_str("the stream was reset before the body's end"),
        }
    }
}

impl Error for Broken {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Hyper(error) => error.source(),
            Self::Reset => None,
        }
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            this.has_ended = frame.is_trailers() || this.body.is_end_stream();
        }
        Poll::Ready(match frame {
            None if !this.has_ended() => Some(Err(Broken::Reset)),
            frame => frame.map(|frame| frame.map_err(Broken::Hyper)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
