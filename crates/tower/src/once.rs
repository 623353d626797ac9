//! What all layers of a process share: the engine over one store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use onlyonce_engine::{Engine, Seldom, Settings, owner};
use onlyonce_http::{HashKeys, Tenants};
use onlyonce_store::embedded::OpenError;
use onlyonce_store::{EmbeddedStore, MemoryStore, Store, StoreError, embedded};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::shell::audience::Audiences;

/// At the end, how long handlers get to be dropped whose operations are settled already.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The engine over one store, with its upkeep. Make one for each process and give every
/// [`OnceLayer`](crate::OnceLayer) a clone of it: the clones are one.
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use onlyonce_tower::Once;
///
/// # let folder = tempfile::tempdir()?;
/// # let folder = folder.path().join("once");
/// let once = Once::embedded(&folder)?;
/// // ... serve, and when the server has stopped:
/// once.shutdown(std::time::Duration::from_secs(30)).await?;
/// # Ok(()) }
/// # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
/// ```
pub struct Once<S: Store> {
    shared: Arc<Shared<S>>,
}

pub(crate) struct Shared<S: Store> {
    pub(crate) engine: Engine<S>,
    pub(crate) settings: Settings,
    pub(crate) hash_keys: HashKeys,
    pub(crate) tenants: Tenants,
    pub(crate) audiences: Audiences,
    /// When to say that the store is down, while every request finds it so.
    pub(crate) store_down: Seldom,
    /// Tells what still executes that it ends now. Each execution holds a receiver.
    stop: watch::Sender<bool>,
    upkeep: AbortHandle,
}

impl<S: Store> Clone for Once<S> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl Once<EmbeddedStore> {
    /// Over a data folder of this process alone, made where it is not there. Every answer survives the
    /// process; see the store's page for what that rests on.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, as [`Once::new`].
    pub fn embedded(folder: impl AsRef<Path>) -> Result<Self, OpenError> {
        let store = EmbeddedStore::open(folder.as_ref(), embedded::Options::default())?;
        Ok(Self::new(store, Settings::default()))
    }
}

impl Once<MemoryStore> {
    /// Over memory: for tests. What it knows is gone with the process, so a retry after a restart runs
    /// again.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, as [`Once::new`].
    pub fn in_memory() -> Self {
        Self::new(MemoryStore::new(), Settings::default())
    }
}

impl<S: Store> Once<S> {
    /// Over any store. Its upkeep (leases, expired space) runs as a task of the runtime that this is
    /// called on, for as long as a clone, a layer or an execution is left.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, and where `settings.chunk_size` is 0.
    pub fn new(store: S, settings: Settings) -> Self {
        Self::over(Arc::new(store), settings)
    }

    /// As [`Once::new`], over a store that others in this process use too.
    ///
    /// # Panics
    ///
    /// As [`Once::new`].
    pub fn over(store: Arc<S>, settings: Settings) -> Self {
        let hash_keys = HashKeys::from_secret(store.secret());
        let tenants = Tenants::new(&hash_keys, []).unwrap_or_else(|_| unreachable!("no tenants"));
        let engine = Engine::new(store, owner(), settings.clone());
        let upkeep = {
            let engine = engine.clone();
            tokio::spawn(async move { engine.run_upkeep().await }).abort_handle()
        };
        Self {
            shared: Arc::new(Shared {
                engine,
                settings,
                hash_keys,
                tenants,
                audiences: Audiences::default(),
                store_down: Seldom::default(),
                stop: watch::Sender::new(false),
                upkeep,
            }),
        }
    }

    /// The engine: to list operations and to look at one. To settle one, see [`Once::complete`].
    pub fn engine(&self) -> &Engine<S> {
        &self.shared.engine
    }

    /// Claims nothing from now on, and waits up to `deadline` for the executions that run. The outcome
    /// of those that are not done by then is unknown; their handlers are dropped. Then the store is
    /// closed, and an error says that it could not make everything durable.
    ///
    /// Call it when the server has stopped: whoever comes later is told that the store is unavailable.
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), StoreError> {
        let shared = &self.shared;
        shared.engine.shutdown(deadline).await;
        shared.stop.send_replace(true);
        if timeout(LAST_WORDS, shared.stop.closed()).await.is_err() {
            tracing::warn!("a handler does not yield, and was left running");
        }
        shared.upkeep.abort();
        shared.engine.store().close().await
    }

    pub(crate) fn shared(&self) -> &Shared<S> {
        &self.shared
    }

    /// What all clones share, to be kept.
    pub(crate) fn shared_handle(&self) -> Arc<Shared<S>> {
        self.shared.clone()
    }

    pub(crate) fn stopping(&self) -> Stopping {
        self.shared.stopping()
    }
}

impl<S: Store> Shared<S> {
    /// For as long as it is held, the shutdown waits for its holder.
    pub(crate) fn stopping(&self) -> Stopping {
        Stopping(self.stop.subscribe())
    }
}

/// Tells one execution that it ends now.
pub(crate) struct Stopping(watch::Receiver<bool>);

impl Stopping {
    /// Waits until what is left running ends.
    pub(crate) async fn stopped(&mut self) {
        // An error says that nobody is left who could say so.
        if self.0.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl<S: Store> Drop for Shared<S> {
    fn drop(&mut self) {
        self.upkeep.abort();
    }
}
