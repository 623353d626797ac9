//! TCP in memory: two ends, bytes both ways, ends and resets.
//!
//! As with a socket, what an end takes may never arrive; what was written before a reset can still be read;
//! an end that goes away with bytes unread resets the connection, and else ends its direction.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::gate::Gate;

/// One end of a connection.
pub struct End {
    sends: Shared,
    hears: Shared,
}

/// What cuts a connection, from wherever.
#[derive(Clone)]
pub struct Cut(Shared, Shared);

type Shared = Arc<Mutex<Direction>>;

/// One direction of a connection.
struct Direction {
    bytes: VecDeque<u8>,
    /// The most bytes that wait to be read.
    room: usize,
    /// How many more bytes are taken before the connection breaks.
    takes: usize,
    /// Nothing more is written.
    ended: bool,
    broken: bool,
    /// Nobody reads any more.
    deaf: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// A connection. The first end writes into `room` bytes, and is cut off after it has written `takes` more.
pub fn pair(room: usize, takes: usize) -> (End, End) {
    let there = Direction::new(room, takes);
    let back = Direction::new(64 << 10, usize::MAX);
    let near = End {
        sends: Arc::clone(&there),
        hears: Arc::clone(&back),
    };
    let far = End {
        sends: back,
        hears: there,
    };
    (near, far)
}

impl Direction {
    fn new(room: usize, takes: usize) -> Shared {
        Arc::new(Mutex::new(Self {
            bytes: VecDeque::new(),
            room,
            takes,
            ended: false,
            broken: false,
            deaf: false,
            reader: None,
            writer: None,
        }))
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()] {
            waker.into_iter().for_each(Waker::wake);
        }
    }

    fn breaks(&mut self) {
        self.broken = true;
        self.wake();
    }
}

impl Cut {
    /// Resets the connection: both ends get an error once they have read what was there.
    pub fn reset(&self) {
        self.0.lock().breaks();
        self.1.lock().breaks();
    }
}

impl End {
    /// What cuts this connection.
    pub fn cut(&self) -> Cut {
        Cut(Arc::clone(&self.sends), Arc::clone(&self.hears))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let unread = {
            let mut hears = self.hears.lock();
            hears.deaf = true;
            hears.wake();
            !hears.bytes.is_empty()
        };
        if unread {
            self.cut().reset();
        }
        let mut sends = self.sends.lock();
        sends.ended = true;
        sends.wake();
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut hears = self.hears.lock();
        if !hears.bytes.is_empty() {
            let read = hears.bytes.read(buf.initialize_unfilled())?;
            buf.advance(read);
            if let Some(writer) = hears.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Ok(()));
        }
        if hears.broken {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        }
        if hears.ended {
            return Poll::Ready(Ok(()));
        }
        hears.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut sends = self.sends.lock();
        if sends.broken || sends.ended {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        if sends.takes == 0 || (sends.deaf && !buf.is_empty()) {
            // The kernel takes what it is given, and hears only then that nobody is there.
            let taken = match sends.takes {
                0 => Err(ErrorKind::ConnectionReset.into()),
                _ => Ok(buf.len()),
            };
            drop(sends);
            self.cut().reset();
            return Poll::Ready(taken);
        }
        let taken = buf
            .len()
            .min(sends.room - sends.bytes.len().min(sends.room))
            .min(sends.takes);
        if taken == 0 && !buf.is_empty() {
            sends.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        sends.bytes.extend(&buf[..taken]);
        if sends.takes != usize::MAX {
            sends.takes -= taken;
        }
        if let Some(reader) = sends.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sends = self.sends.lock();
        sends.ended = true;
        sends.wake();
        Poll::Ready(Ok(()))
    }
}

/// A gateway's end: nothing goes in or out while the gateway stands still.
pub struct Gated {
    pub end: End,
    pub gate: Arc<Gate>,
}

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.gate.poll(cx));
        Pin::new(&mut self.end).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.gate.poll(cx));
        Pin::new(&mut self.end).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.gate.poll(cx));
        Pin::new(&mut self.end).poll_shutdown(cx)
    }
}
