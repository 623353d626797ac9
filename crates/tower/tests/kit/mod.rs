//! A server with the layer before handlers of axum, on a port of its own, over either store.

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request as HttpRequest;
use axum::response::Response as HttpResponse;
use axum::routing::Route;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::StreamBody;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use onlyonce_core::{Basis, Cost, Metered, Record, State, UnknownReason, Usd};
use onlyonce_store::{EmbeddedStore, MemoryStore, Query, Store};
use onlyonce_testkit::{Client, Request, Response, Signal, eventually};
use onlyonce_tower::{Once, OnceLayer, OnceService, Rules};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceExt};

/// Which store a server is over.
pub enum TestStore {
    Memory,
    Embedded(std::path::PathBuf, Option<TempDir>),
}

/// Runs a test over each kind of store.
pub fn on_each_store(test: impl Fn(TestStore)) {
    test(memory());
    let folder = tempfile::tempdir().unwrap();
    test(TestStore::Embedded(
        folder.path().join("data"),
        Some(folder),
    ));
}

pub fn memory() -> TestStore {
    TestStore::Memory
}

pub fn embedded(folder: &Path) -> TestStore {
    TestStore::Embedded(folder.join("data"), None)
}

/// The engine of a server.
enum TestOnce {
    Memory(Once<MemoryStore>),
    Embedded(Once<EmbeddedStore>),
}

/// A layer over whichever store.
#[derive(Clone)]
pub enum TestLayer {
    Memory(OnceLayer<MemoryStore>),
    Embedded(OnceLayer<EmbeddedStore>),
}

impl Layer<Route> for TestLayer {
    type Service = BoxCloneSyncService<HttpRequest, HttpResponse, Infallible>;

    fn layer(&self, route: Route) -> Self::Service {
        match self {
            Self::Memory(layer) => boxed(layer.layer(route)),
            Self::Embedded(layer) => boxed(layer.layer(route)),
        }
    }
}

/// The service, whatever its store.
fn boxed<S: Store>(
    service: OnceService<S, Route>,
) -> BoxCloneSyncService<HttpRequest, HttpResponse, Infallible> {
    let service = ServiceExt::<HttpRequest>::map_response(service, |response| {
        HttpResponse::map(response, Body::new)
    });
    BoxCloneSyncService::new(service)
}

/// A layer over `once`.
pub fn layer<S: Store>(once: &Once<S>, rules: Rules) -> OnceLayer<S> {
    OnceLayer::new(once.clone(), rules)
}

/// A running server; it is gone when dropped.
pub struct Server {
    addr: std::net::SocketAddr,
    once: TestOnce,
    connections: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
    _folder: Option<TempDir>,
}

impl Server {
    /// Serves the routes that `app` makes with a layer of these rules.
    pub fn start(store: TestStore, rules: Rules, app: impl FnOnce(TestLayer) -> Router) -> Self {
        let runtime = Runtime::new().unwrap();
        let guard = runtime.enter();
        let (once, layer, folder) = match store {
            TestStore::Memory => {
                let once = Once::in_memory();
                let layer = TestLayer::Memory(OnceLayer::new(once.clone(), rules));
                (TestOnce::Memory(once), layer, None)
            }
            TestStore::Embedded(path, folder) => {
                let once = Once::embedded(path).unwrap();
                let layer = TestLayer::Embedded(OnceLayer::new(once.clone(), rules));
                (TestOnce::Embedded(once), layer, folder)
            }
        };
        let app = app(layer);
        let connections = Arc::new(AtomicUsize::new(0));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let addr = listener.local_addr().unwrap();
        runtime.spawn(serve(listener, app, connections.clone()));
        drop(guard);
        Self {
            addr,
            once,
            connections,
            runtime: Some(runtime),
            _folder: folder,
        }
    }

    /// Sends a request on a connection of its own, and reads the response.
    #[track_caller]
    pub fn send(&self, request: &Request) -> Response {
        Client::connect(self.addr).ask(request)
    }

    /// Sends a request on a connection of its own, and reads nothing yet.
    pub fn begin(&self, request: &Request) -> Client {
        let mut client = Client::connect(self.addr);
        client.send(request);
        client
    }

    /// Waits until so many connections are open.
    pub fn until_connections(&self, count: usize) {
        eventually("connections are closed", || {
            self.connections.load(SeqCst) == count
        });
    }

    /// Asks until nothing runs any more.
    pub fn until_settled(&self, request: &Request) -> Response {
        eventually("an outcome", || !self.runs());
        self.send(request)
    }

    fn runs(&self) -> bool {
        matches!(self.record().state, State::InFlight { .. })
    }

    /// The only record.
    pub fn record(&self) -> Arc<Record> {
        self.stored().unwrap().0
    }

    /// Attempts at the only operation, none before there is one.
    pub fn attempts(&self) -> u32 {
        self.stored().map_or(0, |(_, attempts)| attempts)
    }

    fn stored(&self) -> Option<(Arc<Record>, u32)> {
        let page = self.block_on(async {
            match &self.once {
                TestOnce::Memory(once) => once.engine().list(all()).await,
                TestOnce::Embedded(once) => once.engine().list(all()).await,
            }
        });
        let stored = page.unwrap().records.pop()?;
        Some((stored.record, stored.attempts))
    }

    /// Why the only operation is unknown.
    pub fn unknown_reason(&self) -> Option<UnknownReason> {
        match self.record().state {
            State::Unknown { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// Settles all and closes the store.
    pub fn shutdown(&self, deadline: Duration) {
        self.block_on(async {
            match &self.once {
                TestOnce::Memory(once) => once.shutdown(deadline).await.unwrap(),
                TestOnce::Embedded(once) => once.shutdown(deadline).await.unwrap(),
            }
        });
    }

    /// Ends as a process does, and lets go of the data folder.
    pub fn end(mut self) {
        self.shutdown(Duration::from_secs(10));
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }

    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(work)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A handler may wait for a signal that never comes.
            runtime.shutdown_background();
        }
    }
}

async fn serve(listener: TcpListener, app: Router, connections: Arc<AtomicUsize>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(app.clone());
        connections.fetch_add(1, SeqCst);
        let connections = connections.clone();
        tokio::spawn(async move {
            let http = auto::Builder::new(TokioExecutor::new());
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
            connections.fetch_sub(1, SeqCst);
        });
    }
}

/// Every record.
pub fn all() -> Query {
    Query {
        limit: 100,
        ..Query::default()
    }
}

/// Runs `work` on a runtime of its own.
pub fn block_on(work: impl Future<Output = ()>) {
    Runtime::new().unwrap().block_on(work);
}

/// A keyed `POST` of somebody.
pub fn keyed(path: &str, key: &str) -> Request {
    Request::post(path)
        .key(key)
        .header("Authorization", "Bearer me")
}

/// Waits for a signal without holding up the runtime.
pub async fn until(signal: &Signal) {
    let signal = signal.clone();
    tokio::task::spawn_blocking(move || signal.wait())
        .await
        .unwrap();
}

/// Fires when it is dropped.
pub struct FireOnDrop(pub Signal);

impl Drop for FireOnDrop {
    fn drop(&mut self) {
        self.0.fire();
    }
}

/// How a body of [`streamed`] ends.
#[derive(Clone, Copy)]
pub enum Ending {
    Whole,
    Fails,
    Panics,
}

/// A body that says `run N begun, `, waits for the signal, and ends as told.
pub fn streamed(number: usize, wait: Signal, ending: Ending) -> Body {
    let stream = futures_util::stream::unfold(0, move |step| {
        let wait = wait.clone();
        async move {
            if step == 1 {
                until(&wait).await;
            }
            let piece = match (step, ending) {
                (0, _) => Ok(Frame::data(Bytes::from(format!("run {number} begun, ")))),
                (1, Ending::Whole) => Ok(Frame::data(Bytes::from_static(b"and ended"))),
                (1, Ending::Fails) => Err(std::io::Error::other("it broke")),
                (1, Ending::Panics) => panic!("a bug in a body"),
                _ => return None,
            };
            Some((piece, step + 1))
        }
    });
    Body::new(StreamBody::new(stream))
}

/// A body in two pieces whose size is known. Its end comes only after the signal.
pub fn sized(wait: Signal, first: &'static str, second: &'static str) -> Body {
    let stream = futures_util::stream::unfold(0, move |step| {
        let wait = wait.clone();
        async move {
            let piece = match step {
                0 => first,
                1 => {
                    // The first one is on its way by itself.
                    tokio::task::yield_now().await;
                    second
                }
                _ => {
                    until(&wait).await;
                    return None;
                }
            };
            Some((Ok(Frame::data(Bytes::from(piece))), step + 1))
        }
    });
    Body::new(Sized {
        body: StreamBody::new(Box::pin(stream)),
        size: (first.len() + second.len()) as u64,
    })
}

/// A body that knows its size.
struct Sized<B> {
    body: B,
    size: u64,
}

impl<B: HttpBody<Data = Bytes, Error = Infallible> + Unpin> HttpBody for Sized<B> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.size)
    }
}

/// What an execution used, at this cost.
pub fn metered(amount: Usd) -> Metered {
    Metered {
        provider: "bank".into(),
        cost: Some(Cost {
            amount,
            basis: Basis::Stated,
            version: "stated".into(),
        }),
        ..Metered::default()
    }
}
