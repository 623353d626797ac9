//! The engine: the async shell around the protocol. Claim, lease, record, join, settle; no HTTP.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use onlyonce_core::{
    Attempt, Fence, Fingerprint, Head, HeaderBlock, Key, OperationId, OwnerId, Policy,
    ReleaseReason, RequestLine, Scope, StateName, Timestamp, UnknownReason,
};
use onlyonce_store::{Page, Query, Store, Stored, Swept};

mod trouble;

pub use trouble::{Broken, PushError, Refused, ResolveError, Trouble, Unsettled};

/// The engine. Cheap to clone.
pub struct Engine<S: Store> {
    store: Arc<S>,
}

impl<S: Store> Clone for Engine<S> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
        }
    }
}

/// Limits and spans.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a claim is believed without renewal.
    pub lease: Duration,
    /// How long the trace of a released operation is kept.
    pub released_retention: Duration,
    /// Bytes of recording that one live operation may hold in memory.
    pub operation_memory: usize,
    /// Bytes of a chunk of a recording, the last one aside.
    pub chunk_size: usize,
    /// The longest response body, in bytes.
    pub max_response: u64,
    /// The most operations live at once.
    pub live_operations: usize,
    /// The most operations of one tenant live at once.
    pub tenant_live: usize,
    /// How long a settling write that fails is tried again.
    pub settle_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            released_retention: Duration::from_secs(3600),
            operation_memory: 256 * 1024,
            chunk_size: 64 * 1024,
            max_response: 256 * 1024 * 1024,
            live_operations: 20_000,
            tenant_live: 10_000,
            settle_timeout: Duration::from_secs(10),
        }
    }
}

/// One attempt, as the engine sees it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where the key is unique.
    pub scope: Scope,
    /// The key.
    pub key: Key,
    /// What makes a later request the same request.
    pub fingerprint: Fingerprint,
    /// The request, for people.
    pub line: RequestLine,
    /// Where it came from.
    pub peer: Box<str>,
    /// What the caller's SDK said of its own retries.
    pub sdk_retry_count: Option<u32>,
}

/// What the route says.
#[derive(Clone, Copy, Debug)]
pub struct RoutePolicy {
    /// For the decision.
    pub decision: Policy,
    /// How long a completed record answers retries.
    pub window: Duration,
    /// How long a joiner waits for the head of the response.
    pub join_timeout: Duration,
}

/// Which operation an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The operation.
    pub id: OperationId,
    /// The attempt's number, from 1.
    pub attempt: u32,
    /// The end of the window, where the record is completed.
    pub expires_at: Option<Timestamp>,
}

/// What an attempt may do.
pub enum Begin<S: Store> {
    /// Execute: the claim is durable.
    Execute(Execution<S>, Reader<S>),
    /// Answer from the finished recording.
    Replay(Reader<S>),
    /// Follow the running execution.
    Join(Reader<S>),
    /// Send nothing.
    Refuse(Refused),
}

/// The owner's handle of an execution.
pub struct Execution<S: Store> {
    engine: Engine<S>,
}

/// The owner's handle after it gave up waiting.
pub struct Late<S: Store> {
    engine: Engine<S>,
}

/// One cursor on a recording.
pub struct Reader<S: Store> {
    engine: Engine<S>,
    ticket: Ticket,
}

/// Whether a response is the outcome, or says that nothing ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The outcome.
    Executed,
    /// The upstream said that it did not run (I10).
    Released,
}

/// How an answer starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With a response; its body follows from [`Reader::next`].
    Response {
        /// Status and headers.
        head: Head,
        /// What it means.
        kind: Kind,
    },
    /// Nothing was sent; carries what happened, for people.
    NotSent(Arc<str>),
    /// Nobody can say whether it ran.
    Unknown(UnknownReason),
    /// The joiner's deadline passed.
    Timeout,
}

/// A piece of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Bytes.
    Data(Bytes),
    /// Trailers; they are the last frame.
    Trailers(HeaderBlock),
}

impl<S: Store> Engine<S> {
    /// An engine over `store`.
    pub fn new(store: Arc<S>, owner: OwnerId, settings: Settings) -> Self {
        let _ = (owner, settings);
        Self { store }
    }
    /// The store.
    pub fn store(&self) -> &Arc<S> {
        &self.store
    }
    /// Operations live now.
    pub fn live(&self) -> usize {
        unimplemented!()
    }
    /// Decides about an attempt.
    pub async fn begin(&self, request: Request, policy: &RoutePolicy) -> Result<Begin<S>, Trouble> {
        let _ = (request, policy);
        unimplemented!()
    }
    /// Stops claiming, waits for live operations for `deadline`, then calls them unknown.
    pub async fn shutdown(&self, deadline: Duration) {
        let _ = deadline;
        unimplemented!()
    }
    /// Renews leases, expires overdue claims, sweeps; until [`Engine::shutdown`] is done.
    pub async fn run_upkeep(&self) {
        unimplemented!()
    }
    /// One round of upkeep.
    pub async fn upkeep(&self) -> Upkeep {
        unimplemented!()
    }
    /// The operation `id` with its attempts.
    pub async fn operation(&self, id: OperationId) -> Result<Option<Operation>, Trouble> {
        let _ = id;
        unimplemented!()
    }
    /// One page of operations.
    pub async fn list(&self, query: Query) -> Result<Page, Trouble> {
        let _ = query;
        unimplemented!()
    }
    /// The recording of `id` where there is one, finished or still growing.
    pub async fn recording(&self, id: OperationId) -> Result<Option<Reader<S>>, Trouble> {
        let _ = id;
        unimplemented!()
    }
    /// Writes what an operator found out about an unknown operation.
    pub async fn resolve(
        &self,
        id: OperationId,
        resolution: Resolution,
        reason: &str,
    ) -> Result<Operation, ResolveError> {
        let _ = (id, resolution, reason);
        unimplemented!()
    }
    /// Removes records; never one in flight. Returns how many.
    pub async fn purge(&self, purge: Purge) -> Result<u64, Trouble> {
        let _ = purge;
        unimplemented!()
    }
}

/// What an operator found out.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// It did not run: the key is free again.
    Released,
    /// It ran, and this was its answer.
    Completed {
        /// Status and headers.
        head: Head,
        /// The whole body.
        body: Bytes,
        /// Trailers.
        trailers: HeaderBlock,
        /// How long it answers retries from now on.
        window: Duration,
    },
}

/// Which records to remove.
#[derive(Clone, Debug, Default)]
pub struct Purge {
    /// Only this tenant's.
    pub tenant: Option<Box<str>>,
    /// Only in this state.
    pub state: Option<StateName>,
    /// Only operations first claimed before this moment.
    pub before: Option<Timestamp>,
}

/// An operation, for people.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The record.
    pub stored: Stored,
    /// The attempts kept, oldest first.
    pub attempts: Vec<Attempt>,
}

/// What a round of upkeep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Leases renewed.
    pub renewed: usize,
    /// Dead owners' claims that became unknown.
    pub expired: usize,
    /// Outcomes written that the store had not taken before.
    pub settled: usize,
    /// What the sweep gave back.
    pub swept: Swept,
}

impl<S: Store> Execution<S> {
    /// The operation.
    pub fn id(&self) -> OperationId {
        let _ = &self.engine;
        unimplemented!()
    }
    /// What the claim stands on.
    pub fn fence(&self) -> Fence {
        unimplemented!()
    }
    /// The key, the same for every execution of the operation.
    pub fn key(&self) -> &Key {
        unimplemented!()
    }
    /// Publishes the head. Of a `Released` response readers see nothing before it is durable.
    pub async fn head(&mut self, head: Head, kind: Kind) -> Result<(), PushError> {
        let _ = (head, kind);
        unimplemented!()
    }
    /// Says how long the body will be, where that is known but not in a `content-length` header
    /// of the head: the last bytes are then withheld until the record is durable (I3).
    pub fn declare_len(&mut self, bytes: u64) {
        let _ = bytes;
    }
    /// Appends to the recording.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), PushError> {
        let _ = bytes;
        unimplemented!()
    }
    /// The whole response at once: one write, published only when durable.
    pub async fn respond_whole(
        self,
        head: Head,
        body: Bytes,
        trailers: HeaderBlock,
    ) -> Result<(), Unsettled> {
        let _ = (head, body, trailers);
        unimplemented!()
    }
    /// Completes.
    pub async fn complete(self, trailers: HeaderBlock) -> Result<(), Unsettled> {
        let _ = trailers;
        unimplemented!()
    }
    /// Releases: `NotSent` without a head, `DidNotRun` after a `Released` head and its whole body.
    pub async fn release(self, reason: ReleaseReason) -> Result<(), Unsettled> {
        let _ = reason;
        unimplemented!()
    }
    /// Releases because nothing was sent, with what happened in words (`Start::NotSent`).
    pub async fn not_sent(self, detail: &str) -> Result<(), Unsettled> {
        let _ = detail;
        unimplemented!()
    }
    /// Releases although the body of the `Released` response broke off: readers are broken.
    pub async fn release_broken(self) -> Result<(), Unsettled> {
        unimplemented!()
    }
    /// Gives up.
    pub async fn lose(self, reason: UnknownReason) -> Result<(), Unsettled> {
        let _ = reason;
        unimplemented!()
    }
    /// Gives up for the readers, but goes on waiting for the answer.
    pub async fn lose_for_now(self, reason: UnknownReason) -> Result<Late<S>, Unsettled> {
        let _ = reason;
        unimplemented!()
    }
}

impl<S: Store> Late<S> {
    /// The operation.
    pub fn id(&self) -> OperationId {
        let _ = &self.engine;
        unimplemented!()
    }
    /// Takes the head.
    pub async fn head(&mut self, head: Head) -> Result<(), PushError> {
        let _ = head;
        unimplemented!()
    }
    /// Appends to the recording.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), PushError> {
        let _ = bytes;
        unimplemented!()
    }
    /// Completes the unknown operation.
    pub async fn complete(self, trailers: HeaderBlock) -> Result<(), Unsettled> {
        let _ = trailers;
        unimplemented!()
    }
    /// Gives up for good.
    pub fn give_up(self) {}
}

impl<S: Store> Reader<S> {
    /// Which attempt this is; `expires_at` is filled in once known.
    pub fn ticket(&self) -> &Ticket {
        let _ = &self.engine;
        &self.ticket
    }
    /// Goes to a byte of the body.
    pub fn seek(&mut self, byte: u64) {
        let _ = byte;
    }
    /// Gives nothing, not even the head, before the whole is durable (`after-durable`).
    pub fn hold_until_durable(&mut self) {}
    /// Waits for the start of the answer.
    pub async fn start(&mut self) -> Start {
        std::future::poll_fn(|cx| self.poll_start(cx)).await
    }
    /// As [`Reader::start`].
    pub fn poll_start(&mut self, cx: &mut Context<'_>) -> Poll<Start> {
        let _ = cx;
        unimplemented!()
    }
    /// The next piece; `None` only after the durable end.
    pub async fn next(&mut self) -> Option<Result<Frame, Broken>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }
    /// As [`Reader::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Broken>>> {
        let _ = cx;
        unimplemented!()
    }
    /// Whether the durable end is reached and [`Reader::next`] would say `None`.
    pub fn is_end(&self) -> bool {
        false
    }
    /// Bytes of body still to come, where known.
    pub fn remaining(&self) -> Option<u64> {
        None
    }
}
