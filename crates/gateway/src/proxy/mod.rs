//! The data path: callers' connections, the requests on them, and the upstreams behind.
//!
//! ```text
//!  worker ── connection ── service ─┬─ passthrough ─────────────┐
//!  (thread)  gate, watch            ├─ mcp (one of the two)     │
//!            scan                   └─ keyed ── execute ────────┼─ exchange ── lane ── pool
//!                                      spool    recording       │              transport
//!                                      shell (replay, join)     ┘
//! ```
//!
//! A `worker` is a thread with a runtime of its own: a connection, its requests and the upstream
//! connections that they use stay on it. Before hyper sees a byte of a caller's, the `gate` has
//! checked the framing. `service` tells which way a request goes: `passthrough` streams, with `watching`
//! beside it where a route observes, and `keyed` asks the engine. `execute` is the one execution of an operation, detached from its
//! caller; every caller reads the recording, through the shell that `onlyonce-tower` has too.

mod asking;
mod connection;
mod exchange;
mod execute;
mod gate;
mod inner_waker;
mod keyed;
mod lane;
mod lines;
mod mcp;
mod metering;
mod outgoing;
mod passthrough;
mod path;
mod pool;
mod recording;
mod reply;
mod service;
mod shared;
mod spool;
mod tls;
mod transport;
mod watch;
mod watching;
mod whole;
mod work;
mod worker;

use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use axum::Router;
use onlyonce_store::Store;
use onlyonce_tower::shell::audience::Audiences;
use tokio::sync::watch as channel;
use tokio_rustls::TlsAcceptor;

pub(crate) use self::connection::serve as serve_connection;
use self::lines::Dial;
pub use self::lines::{ByteStream, Line, OnLines, Opening, Upstreams};
pub(crate) use self::metering::Meters;
pub(crate) use self::tls::{UpstreamTls, service_tls};
pub(crate) use self::transport::Stream;
pub(crate) use self::watch::Watch;
pub(crate) use self::work::Routed;
pub(crate) use self::worker::NO_ROOM;
use self::worker::Worker;
use crate::config::Config;
use crate::failure::Failure;
use crate::shared::{Phases, Shared};

/// The threads that serve requests, each with a current-thread runtime of its own.
pub struct Workers {
    running: channel::Receiver<usize>,
}

impl Workers {
    /// Waits until all of them have ended. May be called again after it was dropped.
    pub async fn wait(&mut self) {
        // An error says that no worker is left to change the number.
        let _ = self.running.wait_for(|running| *running == 0).await;
    }
}

/// Reads the files that the configuration names (certificates, keys, roots), and refuses those
/// that cannot be used.
pub fn check_files(config: &Config) -> Result<(), Failure> {
    UpstreamTls::read(config)?;
    config.server.tls.as_ref().map(tls::server).transpose()?;
    Ok(())
}

/// Starts one worker for each of `listeners`. They serve until `phases` says otherwise, and what is for a
/// route of workers by `work`.
pub fn run<S: Store>(
    shared: Arc<Shared<S>>,
    listeners: Vec<TcpListener>,
    phases: Phases,
    work: &Router,
) -> Result<Workers, Failure> {
    let upstream_tls = UpstreamTls::read(&shared.config)?;
    let tls = shared.config.server.tls.as_ref();
    let tls = tls.map(tls::server).transpose()?.map(TlsAcceptor::from);
    let (count, running) = channel::channel(listeners.len());
    let count = Arc::new(count);
    let audiences = Audiences::default();
    for (number, listener) in listeners.into_iter().enumerate() {
        let worker = Worker::new(&shared, &Dial::Tcp, &upstream_tls, &audiences, work)
            .map_err(|error| cannot_start(&error))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| cannot_start(&error))?;
        let (tls, phases, count) = (tls.clone(), phases.clone(), Arc::clone(&count));
        thread::Builder::new()
            .name(format!("onlyonce-{number}"))
            .spawn(move || {
                let served = runtime.block_on(Arc::new(worker).serve(listener, tls, phases));
                if let Err(error) = served {
                    tracing::error!(%error, "a worker could not serve");
                }
                // What is left on it ends here: nobody is to wait for a blocked file.
                runtime.shutdown_background();
                count.send_modify(|running| *running -= 1);
            })
            .map_err(|error| cannot_start(&error))?;
    }
    Ok(Workers { running })
}

fn cannot_start(error: &std::io::Error) -> Failure {
    Failure::other(
        format!("a worker cannot start ({error})"),
        "look at the limits of the process (ulimit -n, ulimit -u), or lower server.workers",
    )
}
