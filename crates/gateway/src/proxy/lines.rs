//! Lines in the place of sockets: the data path of a gateway whose callers and upstreams are in its own
//! process, as in a simulation.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use onlyonce_store::Store;
use onlyonce_tower::shell::audience::Audiences;
use tokio::io::{AsyncRead, AsyncWrite};

use super::tls::UpstreamTls;
use super::transport::Stream;
use super::worker::Worker;
use crate::failure::Failure;
use crate::shared::{Phases, Shared};

/// Bytes both ways, in order.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A byte stream that is no socket. What it takes has been sent, and what it refuses has not, as with TCP.
pub type Line = Box<dyn ByteStream>;

/// A line that is being opened, or why it could not be.
pub type Opening = Pin<Box<dyn Future<Output = io::Result<Line>> + Send>>;

/// Who opens the lines to the upstreams.
pub trait Upstreams: Send + Sync + 'static {
    /// Opens one to the upstream with this host and port.
    fn open(&self, host: &str, port: u16) -> Opening;
}

/// How a worker reaches its upstreams.
#[derive(Clone)]
pub(super) enum Dial {
    /// Over the network.
    Tcp,
    /// Over lines, without TLS.
    With(Arc<dyn Upstreams>),
}

/// The one worker of a gateway that has neither sockets nor threads: it runs wherever its connections do.
pub struct OnLines<S: Store> {
    worker: Arc<Worker<S>>,
    phases: Phases,
}

impl<S: Store> OnLines<S> {
    /// Serves until `phases` says otherwise.
    pub fn new(
        shared: &Arc<Shared<S>>,
        upstreams: Arc<dyn Upstreams>,
        phases: Phases,
    ) -> Result<Self, Failure> {
        let tls = UpstreamTls::read(&shared.config)?;
        let (dial, audiences) = (Dial::With(upstreams), Audiences::default());
        let worker = Worker::new(shared, &dial, &tls, &audiences, &Router::new())
            .map_err(|error| super::cannot_start(&error))?;
        Ok(Self {
            worker: Arc::new(worker),
            phases,
        })
    }

    /// Serves one caller's connection to its end; `None` where there is one too many.
    pub fn serve(
        &self,
        line: Line,
        peer: SocketAddr,
    ) -> Option<impl Future<Output = ()> + Send + use<S>> {
        self.worker
            .take(Stream::Made(line), peer, None, &self.phases)
    }

    /// Lets go of upstream connections that nobody uses, as a worker does every few seconds.
    pub fn tidy(&self) {
        self.worker.tidy();
    }
}
