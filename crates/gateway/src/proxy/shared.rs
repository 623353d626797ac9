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

/// Runs the tasks of a connection. Until its upstream is known to take more than one stream, who waits for one looks again
/// whenever a task has done something: the upstream tells the connection's own task alone.
#[derive(Clone)]
pub(super) struct Telling {
    changed: Arc<Notify>,
    is_settled: Arc<AtomicBool>,
}

impl<F> Executor<F> for Telling
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        let telling = self.clone();
        tokio::spawn(async move {
            let mut task = pin!(task);
            poll_fn(|cx| {
                let polled = task.as_mut().poll(cx);
                if !telling.is_settled.load(Relaxed) {
                    telling.changed.notify_waiters();
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
    telling: Telling,
    written: Written,
    held: Arc<Held>,
}

/// How many streams of a connection exchanges hold.
struct Held {
    count: AtomicUsize,
    changed: Arc<Notify>,
}

/// A stream of an HTTP/2 connection, until it is dropped.
pub(super) struct SharedStream {
    pub(super) sender: http2::SendRequest<Outgoing>,
    pub(super) written: Written,
    held: Arc<Held>,
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
        Telling {
            changed: Arc::clone(&self.changed),
            is_settled: Arc::default(),
        }
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
        telling: Telling,
        written: Written,
    ) -> SharedStream {
        let driven = Arc::new(Mutex::new(connection));
        let two = Two {
            sender,
            connection: Arc::downgrade(&driven),
            telling,
            written,
            held: Arc::new(Held {
                count: AtomicUsize::new(0),
                changed: Arc::clone(&self.changed),
            }),
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
            let is_used = two.held.count.load(Relaxed) > 0;
            !two.sender.is_closed() && (is_used || !std::mem::replace(&mut has_spare, true))
        });
    }
}

impl Two {
    /// A stream, where one is left.
    fn stream(&self) -> Option<SharedStream> {
        let most = self.connection.upgrade()?.lock().current_max_send_streams();
        if most > 1 {
            self.telling.is_settled.store(true, Relaxed);
        }
        (self.held.count.load(Relaxed) < most).then(|| self.hold())
    }

    fn hold(&self) -> SharedStream {
        self.held.count.fetch_add(1, Relaxed);
        SharedStream {
            sender: self.sender.clone(),
            written: self.written.clone(),
            held: Arc::clone(&self.held),
        }
    }
}

impl Drop for SharedStream {
    fn drop(&mut self) {
        self.held.count.fetch_sub(1, Relaxed);
        self.held.changed.notify_waiters();
    }
}
