//! What the tests share.

use std::{
    future::Future,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use onlyonce_core::{
    Address, Concurrent, Fence, Fingerprint, Head, HeaderBlock, Key, OnUnknown, OperationId,
    OwnerId, Policy, Record, ReleaseReason, RequestLine, Scope, StateName, UnknownReason,
    transition,
};
use onlyonce_engine::{
    Begin, Broken, Engine, Execution, Frame, Kind, Late, Observer, Operation, Reader, Refused,
    Request, Resolution, ResolveError, RoutePolicy, Settings, Start, Trouble,
};
use onlyonce_store::{
    Cached, EmbeddedStore, MemoryStore, Store, Swap, Write, cached, clock::ManualClock,
    embedded::Options,
};
use tempfile::TempDir;

pub const CHUNK: usize = 16;
pub const WINDOW: Duration = Duration::from_secs(86_400);
pub const LEASE: Duration = Duration::from_secs(30);

/// An engine over a store of its own, on a clock that the test moves.
pub struct WorldOver<S: Backend> {
    pub store: Arc<S>,
    pub clock: ManualClock,
    pub engine: Engine<S>,
    /// Where the store keeps its files, if it does.
    folder: Option<Arc<TempDir>>,
}

/// Over the store in memory, which fails on request.
pub type World = WorldOver<MemoryStore>;

impl<S: Backend> Clone for WorldOver<S> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            clock: self.clock.clone(),
            engine: self.engine.clone(),
            folder: self.folder.clone(),
        }
    }
}

/// A store that a test can make.
pub trait Backend: Store + Sized {
    fn make(clock: ManualClock) -> (Self, Option<TempDir>);
}

impl Backend for MemoryStore {
    fn make(clock: ManualClock) -> (Self, Option<TempDir>) {
        (Self::with_clock(clock), None)
    }
}

impl Backend for EmbeddedStore {
    fn make(clock: ManualClock) -> (Self, Option<TempDir>) {
        let folder = tempfile::tempdir().expect("a folder");
        let options = Options {
            clock: Some(Arc::new(clock)),
            ..Options::default()
        };
        let store = Self::open(folder.path(), options).expect("a new folder");
        (store, Some(folder))
    }
}

impl Backend for Cached<MemoryStore> {
    fn make(clock: ManualClock) -> (Self, Option<TempDir>) {
        let shared = Arc::new(MemoryStore::with_clock(clock.clone()));
        let cached = Self::with_clock(shared, cached::Options::default(), clock);
        (cached, None)
    }
}

pub fn settings() -> Settings {
    Settings {
        lease: LEASE,
        released_retention: Duration::from_secs(3_600),
        operation_memory: 4 * CHUNK,
        chunk_size: CHUNK,
        max_response: 1 << 20,
        live_operations: 2_000,
        tenant_live: 2_000,
        settle_timeout: Duration::from_millis(300),
        books: Some(Duration::from_secs(400 * 86_400)),
    }
}

pub fn policy() -> RoutePolicy {
    RoutePolicy {
        decision: Policy::default(),
        window: WINDOW,
        join_timeout: Duration::from_secs(20),
    }
}

pub fn resend() -> RoutePolicy {
    let mut policy = policy();
    policy.decision.on_unknown = OnUnknown::Resend;
    policy
}

pub fn reject() -> RoutePolicy {
    let mut policy = policy();
    policy.decision.concurrent = Concurrent::Reject;
    policy
}

/// For joiners that have little time.
pub fn hurried() -> RoutePolicy {
    RoutePolicy {
        join_timeout: Duration::from_millis(20),
        ..policy()
    }
}

pub fn request(key: &str) -> Request {
    Request {
        scope: Scope {
            tenant: "acme".into(),
            namespace: "charges".into(),
        },
        key: Key::new(key).expect("a key"),
        fingerprint: Fingerprint::from_bytes([7; 32]),
        line: RequestLine {
            route: "charges".into(),
            method: "POST".into(),
            path: "/v1/charges".into(),
            trace: None,
        },
        peer: "127.0.0.1:4242".into(),
        asked_model: "".into(),
        sdk_retry_count: None,
        trace: None,
    }
}

/// Another request under the same key.
pub fn other_request(key: &str) -> Request {
    Request {
        fingerprint: Fingerprint::from_bytes([8; 32]),
        ..request(key)
    }
}

pub fn head(status: u16) -> Head {
    head_with(status, &[("x-first", "1"), ("x-second", "2")])
}

pub fn head_with(status: u16, fields: &[(&str, &str)]) -> Head {
    let fields = fields
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    Head {
        status,
        headers: HeaderBlock::pack(fields).expect("short fields"),
    }
}

pub fn no_trailers() -> HeaderBlock {
    HeaderBlock::default()
}

/// `len` bytes of which no two chunks are alike.
pub fn body(len: usize) -> Bytes {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

impl<S: Backend> WorldOver<S> {
    pub fn new() -> Self {
        Self::with(settings())
    }

    pub fn with(settings: Settings) -> Self {
        let clock = ManualClock::default();
        let (store, folder) = S::make(clock.clone());
        Self {
            folder: folder.map(Arc::new),
            ..Self::over(store, clock, 1, settings)
        }
    }

    /// The engine of `owner` over `store`.
    pub fn over(store: S, clock: ManualClock, owner: u64, settings: Settings) -> Self {
        let store = Arc::new(store);
        Self {
            engine: Engine::new(store.clone(), OwnerId::new(owner), settings),
            store,
            clock,
            folder: None,
        }
    }

    /// The engine of `owner` on the same store, which tells `observer` what it sees.
    pub fn observed(&self, owner: u64, observer: Arc<dyn Observer>) -> Self {
        let (store, owner) = (self.store.clone(), OwnerId::new(owner));
        Self {
            engine: Engine::with_observer(store, owner, settings(), Some(observer)),
            ..self.clone()
        }
    }

    /// Another gateway on the same store.
    pub fn neighbour(&self, owner: u64) -> Self {
        self.neighbour_with(owner, settings())
    }

    pub fn neighbour_with(&self, owner: u64, settings: Settings) -> Self {
        Self {
            engine: Engine::new(self.store.clone(), OwnerId::new(owner), settings),
            ..self.clone()
        }
    }

    pub async fn begin(&self, request: Request) -> Result<Begin<S>, Trouble> {
        self.engine.begin(request, &policy()).await
    }

    pub async fn execute(&self, key: &str) -> (Execution<S>, Reader<S>) {
        self.execute_by(key, &policy()).await
    }

    pub async fn execute_by(&self, key: &str, policy: &RoutePolicy) -> (Execution<S>, Reader<S>) {
        match self.engine.begin(request(key), policy).await {
            Ok(Begin::Execute(execution, reader)) => (execution, reader),
            other => panic!("expected to execute, got {}", name(&other)),
        }
    }

    pub async fn join(&self, key: &str) -> Reader<S> {
        match self.begin(request(key)).await {
            Ok(Begin::Join(reader)) => reader,
            other => panic!("expected to join, got {}", name(&other)),
        }
    }

    pub async fn replay(&self, key: &str) -> Reader<S> {
        match self.begin(request(key)).await {
            Ok(Begin::Replay(reader)) => reader,
            other => panic!("expected a replay, got {}", name(&other)),
        }
    }

    pub async fn refused(&self, request: Request) -> Refused {
        match self.begin(request).await {
            Ok(Begin::Refuse(refused)) => refused,
            other => panic!("expected to be refused, got {}", name(&other)),
        }
    }

    pub async fn trouble(&self, request: Request) -> Trouble {
        match self.begin(request).await {
            Err(trouble) => trouble,
            other => panic!("expected trouble, got {}", name(&other)),
        }
    }

    /// A key whose operation is completed with `body`.
    pub async fn completed(&self, key: &str, body: &'static str) {
        let (execution, _) = self.execute(key).await;
        finish(execution, body).await;
    }

    /// A key whose operation was released: nothing was sent.
    pub async fn released(&self, key: &str) {
        let (execution, _) = self.execute(key).await;
        let released = execution.release(ReleaseReason::NotSent).await;
        released.expect("durable");
    }

    /// An operation that was not answered in time, and what its late answer goes to.
    pub async fn timed_out(&self, key: &str) -> (OperationId, Late<S>) {
        let (execution, _) = self.execute(key).await;
        let id = execution.id();
        let late = execution.lose_for_now(UnknownReason::TimedOut).await;
        (id, late.expect("durable"))
    }

    /// What an operator says of an unknown operation.
    pub async fn rule(
        &self,
        id: OperationId,
        resolution: Resolution,
    ) -> Result<Operation, ResolveError> {
        self.engine
            .resolve(id, resolution, "ops", "looked it up")
            .await
    }

    /// Puts `record` in the place of `expected`, beside the engine.
    pub async fn put(
        &self,
        address: Address,
        expected: Option<Fence>,
        record: Record,
        last_chunk: Option<Bytes>,
    ) {
        let write = Write {
            record,
            last_chunk,
            attempt: None,
        };
        let swap = self.store.compare_and_set(address, expected, write).await;
        assert!(matches!(swap, Ok(Swap::Done { .. })), "{swap:?}");
    }

    /// Completes the claim `claimed` beside the engine, with a body of so many bytes and chunks.
    pub async fn put_answer(
        &self,
        address: Address,
        claimed: &Record,
        (body_len, chunks): (usize, u32),
        last_chunk: Option<Bytes>,
    ) {
        let response = transition::Response {
            head: head(200),
            trailers: no_trailers(),
            body_len: body_len as u64,
            chunks,
        };
        let (fence, now) = (claimed.fence(), self.store.now());
        let completed = transition::complete(Some(claimed), fence, response, now, WINDOW);
        let completed = completed.expect("lawful");
        self.put(address, Some(fence), completed, last_chunk).await;
    }

    pub fn address(&self, key: &str) -> Address {
        let request = request(key);
        onlyonce_store::address(self.store.secret(), &request.scope, &request.key)
    }

    pub async fn record(&self, key: &str) -> Option<Arc<Record>> {
        let stored = self.store.load(self.address(key)).await.expect("readable");
        stored.map(|stored| stored.record)
    }

    pub async fn state(&self, key: &str) -> Option<StateName> {
        self.record(key).await.map(|record| record.state.name())
    }
}

/// It ran, as an operator knows, and this was its body.
pub fn ran(body: impl Into<Bytes>) -> Resolution {
    Resolution::Completed {
        head: head(200),
        body: body.into(),
        trailers: no_trailers(),
        window: WINDOW,
    }
}

/// Completes an execution with `body`.
pub async fn finish<S: Store>(execution: Execution<S>, body: &'static str) {
    execution
        .respond_whole(head(200), body.into(), no_trailers())
        .await
        .expect("durable");
}

pub fn name<S: Store>(begun: &Result<Begin<S>, Trouble>) -> String {
    match begun {
        Ok(Begin::Execute(..)) => "Execute".into(),
        Ok(Begin::Replay(_)) => "Replay".into(),
        Ok(Begin::Join(_)) => "Join".into(),
        Ok(Begin::Refuse(refused)) => format!("{refused:?}"),
        Err(trouble) => format!("{trouble:?}"),
    }
}

/// What one reader got in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub start: Start,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderBlock>,
    pub end: Result<(), Broken>,
}

impl Answer {
    pub fn whole(head: Head, kind: Kind, body: impl Into<Vec<u8>>) -> Self {
        Self {
            start: Start::Response { head, kind },
            body: body.into(),
            trailers: None,
            end: Ok(()),
        }
    }
}

pub async fn read<S: Store>(mut reader: Reader<S>) -> Answer {
    let start = reader.start().await;
    let mut answer = read_body(&mut reader).await;
    answer.start = start;
    answer
}

/// Reads what follows the start, to its end.
pub async fn read_body<S: Store>(reader: &mut Reader<S>) -> Answer {
    let mut answer = Answer {
        start: Start::Timeout,
        body: Vec::new(),
        trailers: None,
        end: Ok(()),
    };
    while let Some(frame) = reader.next().await {
        match frame {
            Ok(Frame::Data(bytes)) => answer.body.extend_from_slice(&bytes),
            Ok(Frame::Trailers(trailers)) => answer.trailers = Some(trailers),
            Err(broken) => {
                answer.end = Err(broken);
                break;
            }
        }
    }
    answer
}

/// What a reader would give now, without waiting.
pub fn poll_next<S: Store>(reader: &mut Reader<S>) -> Poll<Option<Result<Frame, Broken>>> {
    reader.poll_next(&mut Context::from_waker(Waker::noop()))
}

pub fn poll_start<S: Store>(reader: &mut Reader<S>) -> Poll<Start> {
    reader.poll_start(&mut Context::from_waker(Waker::noop()))
}

/// Everything that a reader gives without waiting.
pub fn available<S: Store>(reader: &mut Reader<S>) -> Vec<u8> {
    let mut seen = Vec::new();
    while let Poll::Ready(Some(Ok(Frame::Data(bytes)))) = poll_next(reader) {
        seen.extend_from_slice(&bytes);
    }
    seen
}

/// A task that nobody runs; its count tells who would wake it.
pub struct Idle;

impl Wake for Idle {
    fn wake(self: Arc<Self>) {}
}

/// Waits until `condition` holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let give_up_at = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < give_up_at, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
