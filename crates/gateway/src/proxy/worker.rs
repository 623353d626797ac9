//! One worker: a thread with a runtime, a listener and upstream connections of its own.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use onlyonce_store::Store;
use onlyonce_tower::shell::attached::Stays;
use onlyonce_tower::shell::audience::Audiences;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use super::connection;
use super::lines::Dial;
use super::path::Path;
use super::pool::Pool;
use super::service::Caller;
use super::tls::UpstreamTls;
use super::transport::Stream;
use super::watch::Watch;
use crate::config::StoreUrl;
use crate::shared::{Phase, Phases, Shared};

/// How often a worker lets go of upstream connections that nobody uses.
const TIDY: Duration = Duration::from_secs(5);
/// How long nothing is accepted after the system had no room for a connection.
const NO_ROOM: Duration = Duration::from_millis(50);

/// What one worker has.
pub(super) struct Worker<S: Store> {
    pub(super) shared: Arc<Shared<S>>,
    /// By the number of the route.
    pub(super) paths: Vec<Arc<Path>>,
    /// Where request bodies wait that are too large for memory.
    pub(super) spool_folder: PathBuf,
    /// Of all workers together.
    pub(super) audiences: Audiences,
    /// What is going on.
    pub(super) open: Opens,
    /// Serves what is for a route of workers.
    pub(super) work: Router,
}

impl<S: Store> Worker<S> {
    pub(super) fn new(
        shared: &Arc<Shared<S>>,
        dial: &Dial,
        tls: &UpstreamTls,
        audiences: &Audiences,
        work: &Router,
    ) -> io::Result<Self> {
        let mut pools: Vec<(&str, Arc<Pool>)> = Vec::new();
        for upstream in &shared.config.upstreams {
            let pool = Pool::new(Arc::clone(upstream), dial.clone(), tls.of(upstream))?;
            pools.push((&upstream.name, Arc::new(pool)));
        }
        let path = |route: &Arc<crate::config::Route>| {
            let (_, pool) = pools
                .iter()
                .find(|(name, _)| *name == &*route.upstream.name)
                .ok_or_else(|| io::Error::other("a route without an upstream"))?;
            let forwarded = shared.config.server.forwarded;
            Ok(Arc::new(Path::new(
                Arc::clone(route),
                Arc::clone(pool),
                forwarded,
            )))
        };
        let paths = shared.config.routes.iter().map(path);
        let spool_folder = match &shared.config.store.url {
            StoreUrl::Embedded(folder) => folder.clone(),
            _ => std::env::temp_dir(),
        };
        Ok(Self {
            paths: paths.collect::<io::Result<_>>()?,
            spool_folder,
            audiences: audiences.clone(),
            open: Opens::default(),
            work: work.clone(),
            shared: Arc::clone(shared),
        })
    }

    /// Serves what comes in at `listener` until it is told to stop.
    pub(super) async fn serve(
        self: Arc<Self>,
        listener: std::net::TcpListener,
        tls: Option<TlsAcceptor>,
        mut phases: Phases,
    ) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let mut tidy = tokio::time::interval(TIDY);
        while *phases.borrow_and_update() == Phase::Serving {
            tokio::select! {
                biased;
                accepted = listener.accept() => match accepted {
                    Ok((tcp, peer)) => {
                        // Without it, the last part of an answer may wait for an acknowledgement of
                        // the first.
                        if tcp.set_nodelay(true).is_ok()
                            && let Some(serving) =
                                self.take(Stream::Plain(tcp), peer, tls.as_ref(), &phases)
                        {
                            tokio::spawn(serving);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(NO_ROOM).await;
                    }
                },
                _ = tidy.tick() => self.tidy(),
                changed = phases.changed() => if changed.is_err() { break },
            }
        }
        drop(listener);
        let stopping = phases.wait_for(|phase| *phase == Phase::Stopping);
        tokio::select! {
            biased;
            () = self.open.none() => {}
            _ = stopping => {}
        }
        Ok(())
    }

    /// Serves one connection to its end; `None` where there is one too many.
    pub(super) fn take(
        self: &Arc<Self>,
        came: Stream,
        peer: std::net::SocketAddr,
        tls: Option<&TlsAcceptor>,
        phases: &Phases,
    ) -> Option<impl Future<Output = ()> + Send + use<S>> {
        let open = &self.shared.metrics.connections;
        let max = i64::try_from(self.shared.config.server.max_connections).unwrap_or(i64::MAX);
        if open.get() >= max {
            tracing::warn!(max, "a connection over server.max_connections was closed");
            return None;
        }
        let caller = Caller {
            peer,
            tls: tls.is_some(),
            watch: Arc::new(Watch::new()),
            stays: Stays::default(),
        };
        let connection =
            connection::serve(Arc::clone(self), came, caller, tls.cloned(), phases.clone());
        let connected = Connected::new(Arc::clone(self));
        Some(async move {
            connection.await;
            drop(connected);
        })
    }

    pub(super) fn tidy(&self) {
        for path in &self.paths {
            path.pool.tidy();
        }
    }
}

/// Counts a connection for as long as it is there.
struct Connected<S: Store> {
    worker: Arc<Worker<S>>,
    _open: Open,
}

impl<S: Store> Connected<S> {
    fn new(worker: Arc<Worker<S>>) -> Self {
        worker.shared.metrics.connections.inc();
        let open = worker.open.one_more();
        Self {
            worker,
            _open: open,
        }
    }
}

impl<S: Store> Drop for Connected<S> {
    fn drop(&mut self) {
        self.worker.shared.metrics.connections.dec();
    }
}

/// What a worker waits for before it goes: connections, and executions that go on without one.
#[derive(Clone, Default)]
pub(super) struct Opens(Arc<(AtomicUsize, Notify)>);

/// One of them.
pub(super) struct Open(Opens);

impl Opens {
    pub(super) fn one_more(&self) -> Open {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }

    /// Waits until there is none.
    async fn none(&self) {
        let (count, changed) = &*self.0;
        loop {
            let notified = changed.notified();
            if count.load(Ordering::Acquire) == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let (count, changed) = &*self.0.0;
        if count.fetch_sub(1, Ordering::AcqRel) == 1 {
            changed.notify_waiters();
        }
    }
}
