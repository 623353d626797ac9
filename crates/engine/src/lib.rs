//! The engine: the async shell around the protocol. Claim, lease, record, join, settle; no HTTP.
//!
//! [`Engine::begin`] decides about an attempt. One that may execute gets an [`Execution`], which
//! records the response and settles the outcome, and a [`Reader`]; a joiner or a replay gets a
//! [`Reader`] alone. The first caller is only the first reader: that it leaves changes nothing.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//!
//! use onlyonce_core::{
//!     Fingerprint, Head, HeaderBlock, Key, OwnerId, Policy, RequestLine, Scope,
//! };
//! use onlyonce_engine::{Begin, Engine, Request, RoutePolicy, Settings};
//! use onlyonce_store::MemoryStore;
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
//! # runtime.block_on(async {
//! let store = Arc::new(MemoryStore::new());
//! let engine = Engine::new(store, OwnerId::new(1), Settings::default());
//! let policy = RoutePolicy {
//!     decision: Policy::default(),
//!     window: Duration::from_secs(86_400),
//!     join_timeout: Duration::from_secs(600),
//! };
//! let request = Request {
//!     scope: Scope { tenant: "acme".into(), namespace: "charges".into() },
//!     key: Key::new("order-1").unwrap(),
//!     fingerprint: Fingerprint::from_bytes([7; 32]),
//!     line: RequestLine::default(),
//!     peer: "".into(),
//!     asked_model: "".into(),
//!     sdk_retry_count: None,
//!     trace: None,
//! };
//!
//! let Ok(Begin::Execute(execution, _reader)) = engine.begin(request.clone(), &policy).await else {
//!     panic!("a new key executes");
//! };
//! let head = Head { status: 200, headers: HeaderBlock::default() };
//! execution.respond_whole(head, "charged".into(), HeaderBlock::default()).await.unwrap();
//!
//! let again = engine.begin(request, &policy).await;
//! assert!(matches!(again, Ok(Begin::Replay(_))));
//! # });
//! ```
//!
//! Where to look: [`begin`](Engine::begin) is the way of an attempt, `live` the operations that run
//! now, `recording` what their readers share, `write` how a doubtful write is resolved, `work` what
//! workers outside of the process execute, `upkeep` what happens without anybody asking.

use std::{
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use onlyonce_core::{OwnerId, UnknownReason};
use onlyonce_store::Store;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    abandoned::Abandoned,
    admission::Admission,
    ids::Ids,
    late::Gates,
    live::{End, Live, LiveState, Phase, Registry},
    writer::Writer,
};

mod abandoned;
mod admission;
mod asked;
mod begin;
mod beside;
mod books;
mod elsewhere;
mod execution;
mod fate;
mod ids;
mod late;
mod live;
mod observer;
mod operator;
mod reader;
mod recording;
mod seldom;
mod show;
mod sync;
#[cfg(test)]
mod testing;
mod trouble;
mod upkeep;
mod wakers;
mod work;
mod write;
mod writer;

pub use asked::AskedModel;
pub use begin::{Begin, Request, RoutePolicy, Ticket};
pub use execution::Execution;
pub use fate::{Ended, Fate};
pub use ids::owner;
pub use late::{Closing, Late};
pub use observer::Observer;
pub use operator::{Operation, Purge, Resolution};
pub use reader::{Frame, Kind, Reader, Start};
pub use seldom::Seldom;
pub use trouble::{Broken, PushError, Refused, ResolveError, Trouble, Unsettled};
pub use upkeep::Upkeep;
pub use work::{ClaimToken, Granted, NotAClaimToken, Watch, Work, WorkError, Worker};

/// The engine over one store. Cheap to clone; its clones are one engine.
pub struct Engine<S: Store> {
    shared: Arc<Shared<S>>,
}

impl<S: Store> Clone for Engine<S> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
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
    /// Bytes of recording that one live operation may hold in memory; what one piece and the
    /// current chunk need comes on top. Also the longest released answer.
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
    /// How long the books keep what is in them, zero for ever; `None` keeps no books.
    pub books: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            released_retention: Duration::from_secs(3_600),
            operation_memory: 256 * 1024,
            chunk_size: 64 * 1024,
            max_response: 256 * 1024 * 1024,
            live_operations: 20_000,
            tenant_live: 10_000,
            settle_timeout: Duration::from_secs(10),
            books: Some(Duration::from_secs(400 * 86_400)),
        }
    }
}

pub(crate) struct Shared<S> {
    pub(crate) store: Arc<S>,
    pub(crate) owner: OwnerId,
    pub(crate) settings: Settings,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    pub(crate) registry: Registry,
    /// The operations of other gateways that are followed here.
    pub(crate) mirrors: Registry,
    pub(crate) admission: Admission,
    pub(crate) abandoned: Abandoned,
    pub(crate) late: Gates,
    pub(crate) ids: Ids,
    pub(crate) savings: books::Savings,
    /// Of upkeep that the store did not let be done.
    store_down: Seldom,
    followed: AtomicUsize,
    stopping: AtomicBool,
    /// Notified when the last live operation ends.
    emptied: Notify,
}

impl<S: Store> Engine<S> {
    /// An engine over `store`. `owner` is drawn at random for this life of the process, and used
    /// for no other engine.
    ///
    /// # Panics
    ///
    /// When `settings.chunk_size` is 0.
    pub fn new(store: Arc<S>, owner: OwnerId, settings: Settings) -> Self {
        Self::with_observer(store, owner, settings, None)
    }

    /// As [`Engine::new`], with somebody who is told what operations used and spared.
    ///
    /// # Panics
    ///
    /// When `settings.chunk_size` is 0.
    pub fn with_observer(
        store: Arc<S>,
        owner: OwnerId,
        settings: Settings,
        observer: Option<Arc<dyn Observer>>,
    ) -> Self {
        assert!(settings.chunk_size > 0, "a chunk has at least one byte");
        Self {
            shared: Arc::new(Shared {
                store,
                owner,
                registry: Registry::new(),
                mirrors: Registry::new(),
                admission: Admission::new(&settings),
                settings,
                observer,
                abandoned: Abandoned::default(),
                late: Gates::default(),
                ids: Ids::new(owner),
                savings: books::Savings::default(),
                store_down: Seldom::default(),
                followed: AtomicUsize::new(0),
                stopping: AtomicBool::new(false),
                emptied: Notify::new(),
            }),
        }
    }

    /// The store.
    pub fn store(&self) -> &Arc<S> {
        &self.shared.store
    }

    /// Operations that are being claimed or executed now.
    pub fn live(&self) -> usize {
        self.shared.registry.len()
    }

    /// Operations of this engine that other gateways follow now.
    pub fn followed(&self) -> usize {
        self.shared.followed.load(Ordering::Relaxed)
    }

    /// How old the oldest entry was that came into the books last: what sums and sinks are behind.
    pub fn books_lag(&self) -> Duration {
        self.shared.books_lag()
    }

    /// Sums of what was not spent that the store did not take for sure, and that are counted nowhere.
    pub fn savings_lost(&self) -> u64 {
        self.shared.savings_lost()
    }

    /// Claims nothing from now on, waits up to `deadline` for what is live, and calls the rest
    /// unknown ([`UnknownReason::ShutDown`]). Replays and joins go on.
    pub async fn shutdown(&self, deadline: Duration) {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::SeqCst);
        let now = Instant::now();
        let drained_by = now.checked_add(deadline).unwrap_or(now);
        shared.drained(drained_by).await;
        // What was settling at the deadline gets the time that settling may take.
        let give_up_at = Instant::now() + shared.settings.settle_timeout;
        while self.live() > 0 && Instant::now() < give_up_at {
            let stopping = shared
                .registry
                .all()
                .into_iter()
                .map(|live| shared.stop(live, give_up_at));
            futures_util::future::join_all(stopping).await;
            if self.live() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        }
        shared.settle_all_abandoned().await;
        shared.keep_books().await;
    }
}

impl<S: Store> Shared<S> {
    /// By how much a write raises the epoch that does not know of all that was written before it, where
    /// the store may have forgotten some: see [`Epoch`](onlyonce_core::Epoch).
    pub(crate) fn raise(&self) -> NonZero<u32> {
        match self.store.may_forget() {
            true => self.ids.raise(),
            false => NonZero::<u32>::MIN,
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Ends a live operation: out of the registry first, so that whoever comes next asks the store,
    /// which knows the outcome already.
    pub(crate) fn end(&self, live: &Arc<Live>, end: End) {
        self.registry_leave(live);
        live.end(end);
    }

    pub(crate) fn registry_leave(&self, live: &Arc<Live>) {
        if self.registry.leave(live) && self.is_stopping() {
            self.emptied.notify_waiters();
        }
    }

    async fn drained(&self, by: Instant) {
        loop {
            let emptied = self.emptied.notified();
            if self.registry.len() == 0 || timeout_at(by, emptied).await.is_err() {
                return;
            }
        }
    }

    /// Calls a running operation unknown because the process stops.
    async fn stop(self: &Arc<Self>, live: Arc<Live>, give_up_at: Instant) {
        let claimed = match &*live.state.lock() {
            LiveState {
                phase: Phase::Running,
                record: Some(record),
                ..
            } => record.clone(),
            _ => return,
        };
        let writer = Writer {
            shared: self.clone(),
            live,
            claimed,
        };
        // Whoever settles it at this moment goes first. What the store does not take is tried once
        // more at the end of the shutdown.
        match timeout_at(give_up_at, writer.lose(UnknownReason::ShutDown)).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(error)) => tracing::warn!(%error, "an operation was in flight at the end"),
        }
    }
}
