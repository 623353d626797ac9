//! What all transactions of a process share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use onlyonce_engine::{Engine, owner};
use onlyonce_http::HashKeys;
use onlyonce_store::postgres::{ConnectError, Migrated, Options};
use onlyonce_store::{PostgresStore, Store};
use tokio::task::AbortHandle;

/// How operations are kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where keys are unique, beside the tenant. Default `transactions`. A gateway or a layer with the same
    /// one shares the keys, and its claims of a key wait for the transaction that is at it.
    pub namespace: Box<str>,
    /// How long a result answers whoever comes with its key, counted from completion. Default 24 hours.
    pub window: Duration,
    /// How long to wait for another transaction with the same key, of which nobody knows yet how it will
    /// end. Default 5 seconds; at least a millisecond.
    pub lock_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "transactions".into(),
            window: Duration::from_secs(24 * 3_600),
            lock_wait: Duration::from_secs(5),
        }
    }
}

/// Makes the store's tables at `url`, in the database of the business tables, or brings them to the version
/// of this program. `onlyonce store migrate` does the same.
///
/// # Errors
///
/// See [`ConnectError`]: each is one line that says what to do.
pub async fn migrate(url: &str) -> Result<Migrated, ConnectError> {
    onlyonce_store::postgres::migrate(url, &Options::default()).await
}

/// Operations in transactions. Make one for each process; its clones are one.
#[derive(Clone)]
pub struct Transactions {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) engine: Engine<PostgresStore>,
    pub(crate) settings: Settings,
    pub(crate) hash_keys: HashKeys,
    /// Tells the entries of one transaction apart.
    places: AtomicU32,
    upkeep: Option<AbortHandle>,
}

impl Transactions {
    /// Over the store at `url` (`postgres://…?schema=onlyonce`), in the database of the business tables. Its
    /// tables must be there: see [`migrate`].
    ///
    /// It holds a handful of connections of its own, for the clock, the partitions and upkeep: what is due is
    /// done by a task of this runtime, for as long as a clone is left.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`]: each is one line that says what to do.
    pub async fn open(url: &str, settings: Settings) -> Result<Self, ConnectError> {
        let options = Options {
            writers: 1,
            readers: 1,
            ..Options::default()
        };
        let store = PostgresStore::connect(url, options).await?;
        Ok(Self::new(store, settings))
    }

    /// Over a store that was connected to with options of its own, as one that is encrypted. Upkeep is as in
    /// [`Transactions::open`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(store: PostgresStore, settings: Settings) -> Self {
        let engine = Engine::new(
            Arc::new(store),
            owner(),
            onlyonce_engine::Settings::default(),
        );
        let upkeep = {
            let engine = engine.clone();
            tokio::spawn(async move { engine.run_upkeep().await }).abort_handle()
        };
        Self::with(engine, settings, Some(upkeep))
    }

    /// Over the store of an engine whose upkeep runs already, as that of a layer's: `once.engine()`.
    pub fn over(engine: Engine<PostgresStore>, settings: Settings) -> Self {
        Self::with(engine, settings, None)
    }

    fn with(
        engine: Engine<PostgresStore>,
        settings: Settings,
        upkeep: Option<AbortHandle>,
    ) -> Self {
        let hash_keys = HashKeys::from_secret(engine.store().secret());
        Self {
            shared: Arc::new(Shared {
                engine,
                settings,
                hash_keys,
                places: AtomicU32::new(0),
                upkeep,
            }),
        }
    }

    /// The engine: to list operations, to look at one, and to settle one whose outcome is unknown.
    pub fn engine(&self) -> &Engine<PostgresStore> {
        &self.shared.engine
    }
}

impl Shared {
    pub(crate) fn store(&self) -> &PostgresStore {
        self.engine.store()
    }

    /// A place in the books that no other operation of the same transaction has.
    pub(crate) fn next_place(&self) -> i32 {
        (self.places.fetch_add(1, Ordering::Relaxed) & i32::MAX.cast_unsigned()).cast_signed()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(upkeep) = &self.upkeep {
            upkeep.abort();
        }
    }
}
