//! One connection to an upstream, as one exchange uses it.
//!
//! The future that drives an HTTP/1 connection is polled by the exchange itself: no task of its own
//! has to be woken for every request. An HTTP/2 connection is shared, and driven by a task.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use onlyonce_tower::shell::timer::Timer;
use tokio::time::Instant;

use super::inner_waker::InnerWaker;
use super::outgoing::{CalledOff, Outgoing};
use super::pool::Pool;
use super::shared::SharedStream;
use super::transport::{Counted, Written};
use super::whole::{Broken, Whole};

/// A connection that one exchange has for itself, or a share of one.
pub(super) enum Lane {
    /// HTTP/1.1.
    One(Box<One>),
    /// HTTP/2.
    Two(SharedStream),
}

type Answering = Pin<
    Box<dyn Future<Output = Result<Response<Incoming>, TrySendError<Request<Outgoing>>>> + Send>,
>;

/// An HTTP/1.1 connection.
pub(super) struct One {
    sender: http1::SendRequest<Outgoing>,
    /// What drives the connection. It is kept when it has ended: dropped, it sends on what was not called off.
    driver: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>,
    has_ended: bool,
    /// For the connection, and for what of the answer is polled with it.
    waker: Arc<InnerWaker>,
    written: Written,
    /// Whether it has carried an exchange before.
    used: bool,
    idle_since: Instant,
    /// Goes from one exchange to the next: to move a timer that runs costs nothing.
    timer: Timer,
}

/// Why there was no answer.
pub(super) enum Failed {
    /// The connection had ended before it took the request, which is given back.
    NotTaken(Box<Request<Outgoing>>),
    /// No byte of the request was written, or the upstream says that it did not look at it (I10).
    NotSent(String),
    /// The request went out, in part at least, and no answer came back.
    Broke(String),
    /// What came back is not HTTP.
    BadAnswer(String),
}

impl One {
    pub(super) fn new(
        sender: http1::SendRequest<Outgoing>,
        connection: http1::Connection<TokioIo<Counted>, Outgoing>,
        written: Written,
    ) -> Self {
        Self {
            sender,
            driver: Box::pin(connection.with_upgrades()),
            has_ended: false,
            waker: Arc::new(InnerWaker::new()),
            written,
            used: false,
            idle_since: Instant::now(),
            timer: Timer::default(),
        }
    }

    /// Lets the connection do what it can; true once it has ended.
    fn drive(&mut self, cx: &mut Context<'_>) -> bool {
        // Errors reach the exchange through its answer or its body.
        self.has_ended = self.has_ended || self.driver.as_mut().poll(cx).is_ready();
        self.has_ended
    }

    /// Whether it can carry another exchange, as far as is known now.
    pub(super) fn is_alive(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        !self.drive(&mut cx) && self.sender.is_ready()
    }

    pub(super) fn idle_since(&self) -> Instant {
        self.idle_since
    }
}

impl Lane {
    /// Whether it has carried an exchange before, so that it may have ended in the meantime.
    pub(super) fn is_used(&self) -> bool {
        match self {
            Self::One(one) => one.used,
            Self::Two(_) => true,
        }
    }

    /// Hands the request to the connection.
    pub(super) fn send(
        &mut self,
        mut request: Request<Outgoing>,
        pool: &Pool,
    ) -> (Sending, CallOff) {
        match self {
            Self::One(one) => {
                pool.address_http1(&mut request);
                let sending = Sending {
                    written_before: Some(one.written.bytes()),
                    answering: Box::pin(one.sender.try_send_request(request)),
                };
                let how = How::Connection(one.written.clone());
                (sending, CallOff(how))
            }
            Self::Two(stream) => {
                pool.address_http2(&mut request);
                let (head, body) = request.into_parts();
                let (body, how) = match head.method.is_safe() {
                    true => (body, How::Nothing),
                    false => {
                        let (body, called_off) = body.held();
                        (body, How::Request(called_off, stream.written.clone()))
                    }
                };
                let request = Request::from_parts(head, body);
                let sending = Sending {
                    written_before: None,
                    answering: Box::pin(stream.sender.try_send_request(request)),
                };
                (sending, CallOff(how))
            }
        }
    }

    /// The timer of the exchange that begins.
    pub(super) fn take_timer(&mut self) -> Timer {
        match self {
            Self::One(one) => std::mem::take(&mut one.timer),
            Self::Two(_) => Timer::default(),
        }
    }

    /// Keeps the timer for the next exchange.
    pub(super) fn keep_timer(&mut self, timer: Timer) {
        if let Self::One(one) = self {
            one.timer = timer;
        }
    }

    /// Polls `what` together with the connection that it comes from.
    fn poll_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut what: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        match self {
            Self::Two(_) => what(cx),
            Self::One(one) => {
                let waker = Arc::clone(&one.waker);
                waker.poll(cx, |cx| {
                    one.drive(cx);
                    what(cx)
                })
            }
        }
    }

    /// Drives the connection until HTTP has nothing more to do with it.
    pub(super) async fn into_end(mut self) {
        if let Self::One(one) = &mut self {
            std::future::poll_fn(|cx| match one.drive(cx) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            })
            .await;
        }
    }
}

/// A request whose answer has not begun.
pub(super) struct Sending {
    written_before: Option<u64>,
    answering: Answering,
}

/// Calls a request off when it is dropped, so that no upstream gets the whole of it after its exchange was given up (I1).
/// It has to be dropped before the lane is.
pub(super) struct CallOff(How);

/// How a request is called off.
enum How {
    /// The connection is its alone: it is reset, and what the kernel holds is not sent on.
    Connection(Written),
    /// It shares its connection, where it may still wait for its turn: its end is not sent, and once nobody uses the
    /// connection any more, nothing of what lies with the kernel is.
    Request(CalledOff, Written),
    /// It does nothing.
    Nothing,
}

impl CallOff {
    /// The request goes on, or has its answer.
    pub(super) fn disarm(&mut self) {
        self.0 = How::Nothing;
    }
}

impl Drop for CallOff {
    fn drop(&mut self) {
        match &self.0 {
            How::Connection(written) => written.call_off(),
            How::Request(called_off, written) => {
                called_off.set();
                written.call_off();
            }
            How::Nothing => {}
        }
    }
}

impl Sending {
    /// The head of the answer.
    pub(super) fn poll(
        &mut self,
        lane: &mut Lane,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<Incoming>, Failed>> {
        let answering = &mut self.answering;
        let answered = lane.poll_with(cx, |cx| answering.as_mut().poll(cx));
        answered.map_err(|failure| self.why(lane, failure))
    }

    /// Bytes that this connection was given so far; 0 where that is not counted.
    pub(super) fn written(&self, lane: &Lane) -> u64 {
        match lane {
            Lane::One(one) => one.written.bytes(),
            Lane::Two(_) => 0,
        }
    }

    /// Whether a byte of the request may have been written.
    pub(super) fn has_written(&self, lane: &Lane) -> bool {
        match (lane, self.written_before) {
            (Lane::One(one), Some(before)) => one.written.bytes() != before,
            _ => true,
        }
    }

    fn why(&self, lane: &Lane, mut failure: TrySendError<Request<Outgoing>>) -> Failed {
        if let Some(request) = failure.take_message() {
            return Failed::NotTaken(Box::new(request));
        }
        let error = failure.into_error();
        let text = in_words(&error);
        if !self.has_written(lane) || was_refused(&error) {
            Failed::NotSent(text)
        } else if error.is_parse() {
            Failed::BadAnswer(text)
        } else {
            Failed::Broke(text)
        }
    }
}

/// Whether the upstream says that it did not look at the request (RFC 9113 section 8.7): it refused
/// the stream, or it went away and the stream comes after the last one that it looked at.
fn was_refused(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.is_remote()
                && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM));
        }
        source = error.source();
    }
    false
}

/// An error with its causes, in one line.
fn in_words(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The body of an answer, and the connection that it comes from.
pub(super) struct Answer {
    call_off: CallOff,
    body: Whole,
    lane: Option<Lane>,
    pool: Arc<Pool>,
}

impl Answer {
    pub(super) fn new(call_off: CallOff, body: Whole, lane: Lane, pool: Arc<Pool>) -> Self {
        Self {
            call_off,
            body,
            lane: Some(lane),
            pool,
        }
    }

    /// The next frame. After the last one the connection goes back to the pool.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let body = &mut self.body;
        let frame = match &mut self.lane {
            Some(lane) => lane.poll_with(cx, |cx| Pin::new(&mut *body).poll_frame(cx)),
            None => Pin::new(body).poll_frame(cx),
        };
        match &frame {
            Poll::Ready(None) => self.give_back(),
            Poll::Ready(Some(Ok(_))) if self.body.is_end_stream() => self.give_back(),
            Poll::Ready(Some(Err(_))) => {
                drop(std::mem::replace(&mut self.call_off, CallOff(How::Nothing)));
                self.lane = None;
            }
            _ => {}
        }
        frame
    }

    /// Whether every frame has come.
    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Bytes still to come, as far as that is known.
    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    /// Gives the connection back at the end of the answer, where there is no body to be read.
    pub(super) fn give_back(&mut self) {
        self.call_off.disarm();
        if let Some(Lane::One(mut one)) = self.lane.take()
            && one.is_alive()
        {
            one.used = true;
            one.idle_since = Instant::now();
            self.pool.give_back(one);
        }
    }

    /// Takes the connection out, to go on with it in another protocol.
    pub(super) fn into_lane(mut self) -> Option<Lane> {
        self.call_off.disarm();
        self.lane.take()
    }
}
