//! Byte streams: TCP, plain or under TLS, a line that is no socket, and one that counts what it takes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::gate::Resets;
use super::lines::Line;

/// A connection, plain or under TLS.
pub(crate) enum Stream {
    /// Plain TCP.
    Plain(TcpStream),
    /// A client's connection to us.
    Accepted(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// Our connection to an upstream.
    Opened(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// What stands in the place of plain TCP.
    Made(Line),
}

impl Stream {
    /// Whether what it takes has been handed on, and what it refuses has not.
    fn hands_on(&self) -> bool {
        matches!(self, Self::Plain(_) | Self::Made(_))
    }
}

impl Resets for Stream {
    fn resets(&self, resets: bool) {
        let tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Accepted(tls) => tls.get_ref().0,
            Self::Opened(tls) => tls.get_ref().0,
            Self::Made(_) => return,
        };
        let linger = resets.then_some(Duration::ZERO);
        // A socket that is gone needs no reset.
        let _ = SockRef::from(tcp).set_linger(linger);
    }
}

macro_rules! on_stream {
    ($stream:expr, $io:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Plain($io) => $call,
            Stream::Accepted($io) => $call,
            Stream::Opened($io) => $call,
            Stream::Made($io) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_stream!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Accepted(io) => io.is_write_vectored(),
            Self::Opened(io) => io.is_write_vectored(),
            Self::Made(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

/// How many bytes an upstream may have got so far.
#[derive(Clone, Default)]
pub(super) struct Written(Arc<Counts>);

#[derive(Default)]
struct Counts {
    bytes: AtomicU64,
    /// Whether what was written and is not sent yet goes no further.
    is_called_off: AtomicBool,
}

impl Written {
    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.0.bytes.load(Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.0.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Has the connection reset when it is dropped: what the kernel still holds of it is not sent on.
    pub(super) fn call_off(&self) {
        self.0.is_called_off.store(true, Relaxed);
    }
}

/// A connection to an upstream that counts what was written to it (I10): while the count stands
/// still, no byte of a request has left.
pub(super) struct Counted {
    io: Stream,
    written: Written,
}

impl Counted {
    pub(super) fn new(io: Stream) -> (Self, Written) {
        let written = Written::default();
        let counted = Self {
            io,
            written: written.clone(),
        };
        (counted, written)
    }

    /// TLS takes bytes in before it fails to send them on, and nobody can tell how many of them
    /// went out. They count from the moment that they are offered.
    fn offered(&self, bytes: usize) {
        if !self.io.hands_on() {
            self.written.add(bytes);
        }
    }

    /// What the kernel refuses has not been sent: plain TCP counts what was taken.
    fn taken(&self, taken: &Poll<io::Result<usize>>) {
        if self.io.hands_on()
            && let Poll::Ready(Ok(bytes)) = taken
        {
            self.written.add(*bytes);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.written.0.is_called_off.load(Relaxed) {
            self.io.resets(true);
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.offered(buf.len());
        let taken = Pin::new(&mut this.io).poll_write(cx, buf);
        this.taken(&taken);
        taken
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.offered(bufs.iter().map(|buf| buf.len()).sum());
        let taken = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.taken(&taken);
        taken
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
