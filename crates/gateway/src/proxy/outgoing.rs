//! The body of a request on its way to the upstream.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use onlyonce_ledger::Addition;
use tokio::task::JoinHandle;

use super::whole::{Broken, Whole};
use crate::observe::Sight;

/// How much of a spooled body is read at a time.
const READ_AT_ONCE: usize = 256 * 1024;

/// A request's body on its way to the upstream.
pub(super) enum Outgoing {
    /// No body, or one in memory.
    Whole(Bytes),
    /// One that was spooled to disk.
    Spooled(SpooledBody),
    /// One that is passed on as it comes; somebody may look at it.
    Passed(Whole, Interrupted, Option<Arc<Sight>>),
    /// One of these, whose end is not sent once it is called off.
    Held(Box<Outgoing>, CalledOff),
}

/// Whether a request is called off that may wait in a shared connection: then its end is not sent, and no upstream takes
/// it for a whole one.
#[derive(Clone, Default)]
pub(super) struct CalledOff(Arc<AtomicBool>);

impl CalledOff {
    pub(super) fn set(&self) {
        self.0.store(true, Relaxed);
    }
}

impl Outgoing {
    /// The same body, and what calls it off.
    pub(super) fn held(self) -> (Self, CalledOff) {
        match self {
            Self::Held(body, called_off) => (Self::Held(body, called_off.clone()), called_off),
            body => {
                let called_off = CalledOff::default();
                (Self::Held(Box::new(body), called_off.clone()), called_off)
            }
        }
    }
}

/// Whether the caller failed to send its body whole: then it is not the upstream that broke.
#[derive(Clone, Default)]
pub(super) struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Held(_, called_off) if called_off.0.load(Relaxed) => {
                let error = io::Error::other("the request was called off");
                Poll::Ready(Some(Err(error)))
            }
            Self::Held(body, _) => Pin::new(&mut **body).poll_frame(cx),
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Spooled(body) => {
                let data = ready!(body.poll_data(cx));
                Poll::Ready(data.map(|bytes| bytes.map(Frame::data)).transpose())
            }
            Self::Passed(body, interrupted, sight) => {
                let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                if let Some(sight) = sight {
                    look(sight, frame.as_ref(), body.is_end_stream());
                }
                Poll::Ready(frame.map(|frame| {
                    frame.map_err(|error| {
                        interrupted.0.store(true, Relaxed);
                        io::Error::other(error)
                    })
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Spooled(body) => body.left == 0,
            Self::Passed(body, ..) => body.is_end_stream(),
            // Its end is asked for, and not told with what comes before it: until then it can be called off.
            Self::Held(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Spooled(body) => SizeHint::with_exact(body.left),
            Self::Passed(body, ..) => body.size_hint(),
            Self::Held(body, _) => body.size_hint(),
        }
    }
}

fn look(sight: &Sight, frame: Option<&Result<Frame<Bytes>, Broken>>, is_last: bool) {
    match frame {
        None => sight.end(),
        Some(Err(_)) => {}
        Some(Ok(frame)) => {
            if let Some(data) = frame.data_ref() {
                sight.see(data);
            }
            if is_last {
                sight.end();
            }
        }
    }
}

/// A body that is read from a file. Each has its own place in it, so that a file can be sent again.
pub(super) struct SpooledBody {
    file: Arc<File>,
    /// What is still to come, the last part first.
    parts: Vec<Part>,
    /// All of that, in bytes.
    left: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

enum Part {
    /// Of the file.
    File(Range<u64>),
    Text(&'static str),
}

impl SpooledBody {
    /// The first `len` bytes of `file`, with `addition`.
    pub(super) fn new(file: Arc<File>, len: u64, addition: Option<Addition>) -> Self {
        let parts = match addition {
            None => vec![Part::File(0..len)],
            Some(Addition { at, replaces, text }) => vec![
                Part::File(at + replaces..len),
                Part::Text(text),
                Part::File(0..at),
            ],
        };
        Self {
            file,
            left: parts.iter().map(Part::len).sum(),
            parts,
            reading: None,
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        while self.parts.last().is_some_and(|part| part.len() == 0) {
            self.parts.pop();
        }
        let bytes = match self.parts.last_mut() {
            None => return Poll::Ready(Ok(None)),
            Some(Part::Text(text)) => Bytes::from_static(std::mem::take(text).as_bytes()),
            Some(Part::File(range)) => {
                let reading = self.reading.get_or_insert_with(|| {
                    let (file, at) = (Arc::clone(&self.file), range.start);
                    let left = range.end - range.start;
                    let len = usize::try_from(left).map_or(READ_AT_ONCE, |l| l.min(READ_AT_ONCE));
                    tokio::task::spawn_blocking(move || {
                        let mut bytes = vec![0; len];
                        file.read_exact_at(&mut bytes, at)?;
                        Ok(bytes.into())
                    })
                });
                let read = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                let bytes: Bytes = read.map_err(io::Error::other)??;
                range.start += bytes.len() as u64;
                bytes
            }
        };
        self.left -= bytes.len() as u64;
        Poll::Ready(Ok(Some(bytes)))
    }
}

impl Part {
    /// In bytes.
    fn len(&self) -> u64 {
        match self {
            Self::File(range) => range.end - range.start,
            Self::Text(text) => text.len() as u64,
        }
    }
}
