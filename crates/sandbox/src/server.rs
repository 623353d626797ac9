//! The listener: accepts connections and hands their requests to [`crate::answer`].

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::task::JoinSet;

use crate::answer::{self, Shared};
use crate::ledger::Ledger;
use crate::wire::Wire;

/// More than any gateway forwards; hyper's own limit is 100.
const MAX_HEADERS: usize = 256;

/// Pause after a failed accept (out of file descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A pretend paid provider that is bound to an address and not yet serving.
#[derive(Debug)]
pub struct Sandbox {
    listener: TcpListener,
    local_addr: SocketAddr,
    shared: Arc<Shared>,
}

impl Sandbox {
    /// Binds to `addr`; port 0 takes a free one, see [`Sandbox::local_addr`].
    ///
    /// # Errors
    /// Whatever the operating system answers, such as an address in use.
    pub async fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        Self::on(TcpListener::bind(addr).await?)
    }

    /// Takes a listener that is bound already.
    ///
    /// # Errors
    /// When the listener cannot tell its address.
    pub fn on(listener: TcpListener) -> io::Result<Self> {
        let local_addr = listener.local_addr()?;
        // Ids carry the time of birth, so that the answers of two sandboxes differ too.
        let born = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let shared = Arc::new(Shared::new(born.as_millis() as u64));
        Ok(Self {
            listener,
            local_addr,
            shared,
        })
    }

    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The ledger; the handle stays good while the sandbox serves and after.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        self.shared.ledger.clone()
    }

    /// Serves until `shutdown` resolves, then drops every connection at once.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(connection(Arc::clone(&self.shared), stream));
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
            }
        }
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream) -> Result<(), Infallible> {
    // Without this a stream's small events would wait for acknowledgements.
    let _ = stream.set_nodelay(true);
    let (wire, reset) = Wire::new(stream);
    let service =
        service_fn(move |request| answer::answer(Arc::clone(&shared), reset.clone(), request));
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().max_headers(MAX_HEADERS);
    // An error here is a client that left or a fault that was asked for; the ledger has it.
    let _ = server.serve_connection(TokioIo::new(wire), service).await;
    Ok(())
}
