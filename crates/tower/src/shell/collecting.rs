//! The body of a keyed request comes in whole before anything is claimed: its fingerprint has to be
//! known, and what never comes is not sent on.

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;

use super::timer::Timer;

/// A client that sends slower than this for longer than the body timeout is cut off.
const MIN_BYTES_A_SECOND: u64 = 16 * 1024;

/// Why there is no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoBody {
    /// It is larger than its limit.
    TooLarge,
    /// It did not come in time.
    TooSlow,
    /// The client left or broke the framing.
    Broken,
}

/// A body that comes in, held to a size and a speed.
pub struct Coming<B> {
    body: B,
    max: u64,
    timeout: Duration,
    announced: u64,
    seen: u64,
    timer: Timer,
    /// Whether there is nothing more to ask for.
    is_over: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Coming<B> {
    /// Of at most `max` bytes, of which the first come within `timeout`.
    pub fn new(body: B, max: u64, timeout: Duration) -> Result<Self, NoBody> {
        let announced = body.size_hint().lower();
        if announced > max {
            return Err(NoBody::TooLarge);
        }
        let is_over = body.is_end_stream();
        let mut timer = Timer::default();
        if !is_over {
            timer.set(timeout);
        }
        Ok(Self {
            body,
            max,
            timeout,
            announced,
            seen: 0,
            timer,
            is_over,
        })
    }

    /// How many bytes there will be at least, as far as that was known at the start.
    pub fn announced(&self) -> u64 {
        self.announced
    }

    /// How many bytes have come.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The next piece of data. Trailers are left out: no key is ever in them, and none is needed.
    pub async fn next(&mut self) -> Result<Option<Bytes>, NoBody> {
        while !self.is_over {
            let frame = std::future::poll_fn(|cx| {
                if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
                    return Poll::Ready(Ok(frame));
                }
                self.timer.poll(cx).map(|()| Err(NoBody::TooSlow))
            })
            .await?;
            let frame = match frame {
                // A reset may look like an end (hyper takes one with `NO_ERROR` for it).
                None if self.seen < self.announced => return Err(NoBody::Broken),
                None => break,
                Some(Err(_)) => return Err(NoBody::Broken),
                Some(Ok(frame)) => frame,
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            self.seen += data.len() as u64;
            if self.seen > self.max {
                return Err(NoBody::TooLarge);
            }
            self.is_over = self.body.is_end_stream();
            let earned = Duration::from_secs(self.seen / MIN_BYTES_A_SECOND);
            self.timer.postpone(self.timeout + earned);
            return Ok(Some(data));
        }
        self.is_over = true;
        Ok(None)
    }
}
