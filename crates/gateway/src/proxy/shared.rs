//! HTTP/2 connections, whose streams exchanges share.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;

use super::outgoing::Outgoing;
use super::transport::Counted;

type Connection = http2::Connection<TokioIo<Counted>, Outgoing, TokioExecutor>;

/// The HTTP/2 connections that answers of one kind share. There are as many as it takes for each exchange to have a
/// stream at once: what waits for a stream that others hold may wait for longer than its caller (L5).
#[derive(Default)]
pub(super) struct Shared {
    connections: Mutex<Vec<Two>>,
    /// Held while one is being opened that others are to share.
    pub(super) opening: tokio::sync::Mutex<()>,
}

/// An HTTP/2 connection.
struct Two {
    sender: http2::SendRequest<Outgoing>,
    /// It knows how many streams the upstream takes at a time. The task that drives it owns it: when that ends, `sender`
    /// is closed, and gives back what nobody will send.
    connection: Weak<Mutex<Connection>>,
    /// How many streams exchanges hold.
    held: Arc<AtomicUsize>,
}

/// A stream of an HTTP/2 connection, until it is dropped.
pub(super) struct SharedStream {
    pub(super) sender: http2::SendRequest<Outgoing>,
    held: Arc<AtomicUsize>,
}

impl Shared {
    /// A stream of a connection that has one left.
    pub(super) fn stream(&self) -> Option<SharedStream> {
        let mut connections = self.connections.lock();
        connections.retain(|two| !two.sender.is_closed());
        connections.iter().find_map(Two::stream)
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
    ) -> SharedStream {
        let driven = Arc::new(Mutex::new(connection));
        let two = Two {
            sender,
            connection: Arc::downgrade(&driven),
            held: Arc::default(),
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
            let is_used = two.held.load(Relaxed) > 0;
            !two.sender.is_closed() && (is_used || !std::mem::replace(&mut has_spare, true))
        });
    }
}

impl Two {
    /// A stream, where one is left.
    fn stream(&self) -> Option<SharedStream> {
        let most = self.connection.upgrade()?.lock().current_max_send_streams();
        (self.held.load(Relaxed) < most).then(|| self.hold())
    }

    fn hold(&self) -> SharedStream {
        self.held.fetch_add(1, Relaxed);
        SharedStream {
            sender: self.sender.clone(),
            held: Arc::clone(&self.held),
        }
    }
}

impl Drop for SharedStream {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Relaxed);
    }
}
