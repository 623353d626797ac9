//! HTTP/2 connections, whose streams exchanges share.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::outgoing::Outgoing;
use super::transport::{Counted, Written};

type Connection = http2::Connection<TokioIo<Counted>, Outgoing, Telling>;

/// The HTTP/2 connections that answers of one kind share. There are as many as it takes for each exchange to have a
/// stream at once: what waits for a stream that others hold may wait for longer than its caller (L5).
#[derive(Default)]
pub(super) struct Shared {
    connections: Mutex<Vec<Two>>,
    /// Held while one is being opened that others are to share.
    pub(super) opening: tokio::sync::Mutex<()>,
    /// Whoever waits for a stream looks again: there may be one.
    changed: Arc<Notify>,
}

/// The streams of one connection.
struct Streams {
    /// How many exchanges hold.
    held: AtomicUsize,
    /// Whether the upstream is known to take more than one.
    is_settled: AtomicBool,
    changed: Arc<Notify>,
}

/// Runs the tasks of a connection. Until its upstream is known to take more than one stream, who waits for one looks again
/// whenever a task has done something: the upstream tells the connection's own task alone.
#[derive(Clone)]
pub(super) struct Telling(Arc<Streams>);

impl<F> Executor<F> for Telling
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        let streams = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut task = pin!(task);
            poll_fn(|cx| {
                let polled = task.as_mut().poll(cx);
                if !streams.is_settled.load(Relaxed) {
                    streams.changed.notify_waiters();
                }
                polled
            })
            .await
        });
    }
}

/// An HTTP/2 connection.
struct Two {
    sender: http2::SendRequest<Outgoing>,
    /// It knows how many streams the upstream takes at a time. The task that drives it owns it: when that ends, `sender`
    /// is closed, and gives back what nobody will send.
    connection: Weak<Mutex<Connection>>,
    written: Written,
    streams: Arc<Streams>,
}

/// A stream of an HTTP/2 connection, until it is dropped.
pub(super) struct SharedStream {
    pub(super) sender: http2::SendRequest<Outgoing>,
    pub(super) written: Written,
    streams: Arc<Streams>,
}

impl Shared {
    /// A stream of a connection that has one left.
    pub(super) fn stream(&self) -> Option<SharedStream> {
        let mut connections = self.connections.lock();
        connections.retain(|two| !two.sender.is_closed());
        connections.iter().find_map(Two::stream)
    }

    /// What runs the tasks of a new connection.
    pub(super) fn telling(&self) -> Telling {
        Telling(Arc::new(Streams {
            held: AtomicUsize::new(0),
            is_settled: AtomicBool::new(false),
            changed: Arc::clone(&self.changed),
        }))
    }

    /// Done once there may be a stream that there was not when this was called.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Whether the upstream is known to speak HTTP/2.
    pub(super) fn has_any(&self) -> bool {
        !self.connections.lock().is_empty()
    }

    /// Takes in a new connection, for its first stream, and drives it.
    pub(super) fn add(
        &self,
        sender: http2::SendRequest<Outgoing>,
        connection: Connection,
        Telling(streams): Telling,
        written: Written,
    ) -> SharedStream {
        let driven = Arc::new(Mutex::new(connection));
        let two = Two {
            sender,
            connection: Arc::downgrade(&driven),
            written,
            streams,
        };
        tokio::spawn(poll_fn(move |cx| Pin::new(&mut *driven.lock()).poll(cx)));
        let first = two.hold();
        self.connections.lock().push(two);
        first
    }

    /// Lets go of connections that have ended, and of all but one of those that nobody uses.
    pub(super) fn tidy(&self) {
        let mut has_spare = false;
        self.connections.lock().retain(|two| {
            let is_used = two.streams.held.load(Relaxed) > 0;
            !two.sender.is_closed() && (is_used || !std::mem::replace(&mut has_spare, true))
        });
    }
}

impl Two {
    /// A stream, where one is left.
    fn stream(&self) -> Option<SharedStream> {
        let most = self.connection.upgrade()?.lock().current_max_send_streams();
        if most > 1 {
            self.streams.is_settled.store(true, Relaxed);
        }
        (self.streams.held.load(Relaxed) < most).then(|| self.hold())
    }

    fn hold(&self) -> SharedStream {
        self.streams.held.fetch_add(1, Relaxed);
        SharedStream {
            sender: self.sender.clone(),
            written: self.written.clone(),
            streams: Arc::clone(&self.streams),
        }
    }
}

impl Drop for SharedStream {
    fn drop(&mut self) {
        self.streams.held.fetch_sub(1, Relaxed);
        self.streams.changed.notify_waiters();
    }
}
