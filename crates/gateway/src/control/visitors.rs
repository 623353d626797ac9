//! The connections of the control listener: how many there are, and who makes room.
//!
//! They are held to the same framing and the same deadlines as those of callers. Beyond that, whoever has
//! shown no token and does nothing makes room for whoever comes: peers that only hold a connection must
//! keep nobody else out.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::Extensions;
use onlyonce_store::Store;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use crate::proxy::{NO_ROOM, Routed, Stream, Watch, serve_connection};
use crate::room::{self, Whose};
use crate::shared::{Phase, Phases, Shared};

/// Serves `router` on `listener` until it is aborted.
pub(super) async fn serve<S: Store>(shared: Arc<Shared<S>>, router: Router, listener: TcpListener) {
    let max = room::of_control(shared.config.server.max_control_connections);
    let visitors = Arc::new(Visitors::new(max));
    // Gone with this future; the connections end with it.
    let (_serving, phases) = watch::channel(Phase::Serving);
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => take(&shared, &visitors, &router, (tcp, peer), phases.clone()),
            Err(error) => {
                tracing::warn!(%error, "a connection to the control listener could not be accepted");
                tokio::time::sleep(NO_ROOM).await;
            }
        }
    }
}

fn take<S: Store>(
    shared: &Arc<Shared<S>>,
    visitors: &Arc<Visitors>,
    router: &Router,
    (tcp, peer): (TcpStream, SocketAddr),
    phases: Phases,
) {
    if !room::has(&tcp, Whose::Control) {
        room::say("a connection to the control listener was closed");
        return;
    }
    // Without it, the last part of an answer may wait for an acknowledgement of the first.
    if tcp.set_nodelay(true).is_err() {
        return;
    }
    let visitor = Visitor::default();
    let Some(visit) = visitors.admit(visitor.clone()) else {
        let max = visitors.max;
        tracing::warn!(
            max,
            "a connection over server.max_control_connections was closed"
        );
        return;
    };
    let mut extensions = Extensions::new();
    extensions.insert(ConnectInfo(peer));
    extensions.insert(visitor.known);
    let service = Routed::new(router.clone(), visitor.watch, extensions);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        tokio::select! {
            () = serve_connection(&shared.config.server, Stream::Plain(tcp), None, service, phases) => {}
            () = visitor.leave.notified() => {}
        }
        drop(visit);
    });
}

/// In the extensions of a request: whether a token was shown on its connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(Arc<AtomicBool>);

impl Known {
    /// Notes that one was.
    pub(super) fn note(extensions: &Extensions) {
        if let Some(Self(known)) = extensions.get() {
            known.store(true, Relaxed);
        }
    }
}

/// One connection.
#[derive(Clone)]
struct Visitor {
    watch: Arc<Watch>,
    known: Known,
    /// Tells it that another one takes its place.
    leave: Arc<Notify>,
}

impl Default for Visitor {
    fn default() -> Self {
        Self {
            watch: Arc::new(Watch::new()),
            known: Known::default(),
            leave: Arc::default(),
        }
    }
}

/// All connections.
struct Visitors {
    max: usize,
    next: AtomicU64,
    here: Mutex<HashMap<u64, Visitor>>,
}

/// The place of one of them, for as long as it is there.
struct Visit {
    number: u64,
    visitors: Arc<Visitors>,
}

impl Visitors {
    fn new(max: usize) -> Self {
        Self {
            max,
            next: AtomicU64::new(0),
            here: Mutex::default(),
        }
    }

    /// A place for `visitor`: a free one, or that of who has been idle for longest. `None` where all others
    /// are being answered.
    fn admit(self: &Arc<Self>, visitor: Visitor) -> Option<Visit> {
        let mut here = self.here.lock();
        if here.len() >= self.max {
            let idle = here.iter().filter_map(|(number, one)| {
                let is_known = one.known.0.load(Relaxed);
                // A body that never ends keeps a stranger busy.
                let idle_for = one
                    .watch
                    .idle_for()
                    .or((!is_known).then_some(Default::default()))?;
                Some(((!is_known, idle_for), *number))
            });
            let (_, number) = idle.max()?;
            here.remove(&number)?.leave.notify_one();
        }
        let number = self.next.fetch_add(1, Relaxed);
        here.insert(number, visitor);
        Some(Visit {
            number,
            visitors: Arc::clone(self),
        })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.visitors.here.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Visitor {
        let visitor = Visitor::default();
        visitor.known.0.store(true, Relaxed);
        visitor
    }

    /// Whether another one took its place.
    async fn left(visitor: &Visitor) -> bool {
        tokio::select! {
            biased;
            () = visitor.leave.notified() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn l5_a_stranger_makes_room_before_anybody_with_a_token() {
        let visitors = Arc::new(Visitors::new(2));
        let (holder, stranger) = (known(), Visitor::default());
        // Even while it is being answered.
        stranger.watch.begin();
        let _holds = visitors.admit(holder.clone()).unwrap();
        let _stays = visitors.admit(stranger.clone()).unwrap();
        let _comes = visitors.admit(known()).unwrap();
        assert!(left(&stranger).await);
        assert!(!left(&holder).await);
    }

    #[tokio::test]
    async fn l5_a_stream_of_who_has_shown_a_token_is_never_cut_for_another_one() {
        let visitors = Arc::new(Visitors::new(1));
        let follower = known();
        follower.watch.begin();
        let stays = visitors.admit(follower.clone()).unwrap();
        assert!(visitors.admit(Visitor::default()).is_none());
        assert!(!left(&follower).await);
        drop(stays);
        assert!(visitors.admit(Visitor::default()).is_some());
    }

    #[tokio::test]
    async fn the_one_that_was_idle_for_longest_makes_room() {
        let visitors = Arc::new(Visitors::new(2));
        let (early, late) = (Visitor::default(), Visitor::default());
        let _first = visitors.admit(early.clone()).unwrap();
        let _second = visitors.admit(late.clone()).unwrap();
        while early.watch.idle_for() < Some(std::time::Duration::from_millis(2)) {
            std::hint::spin_loop();
        }
        // It was answered just now; its clock may tick once more.
        late.watch.begin();
        late.watch.end();
        let _third = visitors.admit(Visitor::default()).unwrap();
        assert!(left(&early).await);
        assert!(!left(&late).await);
    }
}
