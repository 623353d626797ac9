//! The client's connection as hyper sees it: only well-framed bytes come through.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use onlyonce_http::scan::{Fault, Found, Place, Scan};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::watch::Watch;

/// How much of what a client still sends is read and thrown away before its connection is closed,
/// so that the answer that tells it why is not lost in a reset.
const MAX_LINGER_BYTES: usize = 1 << 20;

/// A stream that can end by a reset.
pub(super) trait Resets {
    /// Whether it is to be reset when it is dropped, or when the process dies.
    fn resets(&self, resets: bool);
}

/// A connection whose incoming bytes are checked before hyper parses them.
pub(super) struct Gate<S> {
    io: S,
    /// Bytes that were read to tell the protocol.
    early: Bytes,
    scan: Scan,
    watch: Arc<Watch>,
    /// What hyper must not see, once it was seen here. Hyper gets the end of the stream instead.
    fault: Option<Fault>,
    /// Whether the fault stands in a head, so that no service will answer it.
    unanswered: bool,
    /// Whether who closed its sending half is still owed its answer.
    owes_half_closed: bool,
    /// Whether the stream is told to be reset when it is dropped.
    resets: bool,
}

impl<S> Gate<S> {
    pub(super) fn new(
        io: S,
        early: Bytes,
        scan: Scan,
        watch: Arc<Watch>,
        owes_half_closed: bool,
    ) -> Self {
        Self {
            io,
            early,
            scan,
            watch,
            fault: None,
            unanswered: false,
            owes_half_closed,
            resets: false,
        }
    }

    /// The fault that nobody has answered yet.
    pub(super) fn unanswered_fault(&self) -> Option<Fault> {
        self.fault.filter(|_| self.unanswered)
    }

    /// Whether the client may still be sending what nobody will read.
    fn has_unread(&self) -> bool {
        self.fault.is_some() || matches!(self.scan.place(), Place::Head | Place::Body)
    }

    /// Tells hyper that the stream has ended, which hyper takes for the end of the client. One that
    /// only closed its sending half, or sent something wrong later, is still owed its answer.
    fn end(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let between = match self.fault {
            Some(_) => self.unanswered,
            None => self.owes_half_closed && self.scan.place() == Place::Between,
        };
        if between && self.watch.is_busy() {
            self.watch.wake_at_end(cx.waker());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn check(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let found = self.scan.feed(&buf.filled()[before..]);
        if let Err(Found { fault, sound }) = found {
            self.unanswered = matches!(self.scan.place(), Place::Head | Place::Between);
            self.fault = Some(fault);
            buf.set_filled(before + sound);
        }
        self.watch.note_place(self.scan.place());
    }
}

impl<S: AsyncRead + AsyncWrite + Resets + Unpin> Gate<S> {
    /// Ends a connection that hyper is done with: says `last`, where there is something to say,
    /// and reads what the client still sends for a moment. Where an answer broke off whose end is the connection's,
    /// the client is to see that it broke off.
    pub(super) async fn close(mut self, last: Option<Bytes>) -> io::Result<()> {
        self.arm();
        if self.resets {
            return Ok(());
        }
        if let Some(last) = &last {
            self.io.write_all(last).await?;
        }
        self.io.shutdown().await?;
        if last.is_none() && !self.has_unread() {
            return Ok(());
        }
        let mut sink = [0; 8192];
        let mut read = 0;
        while read < MAX_LINGER_BYTES {
            match self.io.read(&mut sink).await? {
                0 => break,
                more => read += more,
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.fault.is_some() {
            return this.end(cx);
        }
        let before = buf.filled().len();
        if this.early.is_empty() {
            if !this.watch.is_half_closed() {
                ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            }
            if buf.filled().len() == before {
                this.watch.note_half_closed();
                return this.end(cx);
            }
        } else {
            let count = this.early.len().min(buf.remaining());
            buf.put_slice(&this.early[..count]);
            this.early.advance(count);
        }
        this.check(buf, before);
        Poll::Ready(Ok(()))
    }
}

impl<S: Resets> Gate<S> {
    /// While an answer is under way whose end is the connection's, whatever ends that is to be a reset.
    fn arm(&mut self) {
        let resets = self.watch.is_unframed();
        if resets != self.resets {
            self.io.resets(resets);
            self.resets = resets;
        }
    }
}

impl<S: AsyncWrite + Unpin> Gate<S> {
    fn noting<T>(&self, written: Poll<T>) -> Poll<T> {
        self.watch.note_write(written.is_pending());
        written
    }
}

impl<S: AsyncWrite + Resets + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.arm();
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        this.noting(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.arm();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.noting(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    /// Does nothing yet: the connection is ended by [`Gate::close`], which may have a last word.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
