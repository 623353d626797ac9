//! The body of an answer: its frames, the pace between them and the way it ends.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use crate::ledger::Execution;
use crate::wire::Reset;

/// Time for what was written to reach the peer before the connection is broken: a reset throws
/// away what the kernel has not sent yet.
const GRACE: Duration = Duration::from_millis(20);

/// The connection is to be broken here, as a fault demands.
#[derive(Debug)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken on request")
    }
}

impl std::error::Error for Broken {}

/// How a body ends.
#[derive(Debug)]
pub(crate) enum Ending {
    /// Whole.
    Clean,
    /// Short, by an orderly close of the connection.
    Closed,
    /// Short, by a TCP reset (`None` on HTTP/2, where only the stream is reset).
    Reset(Option<Reset>),
}

#[derive(Debug)]
pub(crate) struct AnswerBody {
    frames: VecDeque<Bytes>,
    /// `None` for a body that is handed over whole and has a length.
    interval: Option<Duration>,
    pause: Option<Pin<Box<Sleep>>>,
    ending: Ending,
    /// Settled when the last frame is handed over; dropped before that, it reads as aborted.
    execution: Option<Execution>,
}

impl AnswerBody {
    /// A body with a known length.
    pub(crate) fn whole(bytes: Bytes, execution: Option<Execution>) -> Self {
        let frames = if bytes.is_empty() {
            VecDeque::new()
        } else {
            VecDeque::from([bytes])
        };
        Self::new(frames, None, Ending::Clean, execution)
    }

    /// A body sent frame by frame, `interval` apart.
    pub(crate) fn paced(
        frames: VecDeque<Bytes>,
        interval: Duration,
        ending: Ending,
        execution: Option<Execution>,
    ) -> Self {
        Self::new(frames, Some(interval), ending, execution)
    }

    fn new(
        frames: VecDeque<Bytes>,
        interval: Option<Duration>,
        ending: Ending,
        mut execution: Option<Execution>,
    ) -> Self {
        if let (Ending::Clean, Some(execution)) = (&ending, &mut execution) {
            execution.answers(frames.iter().map(Bytes::as_ref));
        }
        let mut body = Self {
            frames,
            interval,
            pause: None,
            ending,
            execution,
        };
        if body.frames.is_empty() {
            body.last_frame_handed_over();
        }
        body
    }

    fn last_frame_handed_over(&mut self) {
        if matches!(self.ending, Ending::Clean) {
            if let Some(execution) = self.execution.take() {
                execution.complete();
            }
        } else {
            self.pause_for(GRACE);
        }
    }

    fn pause_for(&mut self, time: Duration) {
        self.pause = Some(Box::pin(tokio::time::sleep(time)));
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        if let Some(bytes) = self.frames.pop_front() {
            if self.frames.is_empty() {
                self.last_frame_handed_over();
            } else if let Some(interval) = self.interval
                && !interval.is_zero()
            {
                self.pause_for(interval);
            }
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match &self.ending {
            Ending::Clean => return Poll::Ready(None),
            Ending::Closed | Ending::Reset(None) => {}
            Ending::Reset(Some(reset)) => reset.arm(),
        }
        Poll::Ready(Some(Err(Broken)))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && matches!(self.ending, Ending::Clean)
    }

    fn size_hint(&self) -> SizeHint {
        if self.interval.is_some() {
            return SizeHint::default();
        }
        SizeHint::with_exact(self.frames.iter().map(|bytes| bytes.len() as u64).sum())
    }
}
