//! Redis 7, or Valkey: one truth for many gateways, with a weaker promise.
//!
//! Every transition is one script, which the server runs as a whole: it compares fences, decides by
//! the server's own clock what has expired, and writes the record together with its indexes
//! (`scripts`). Operations are cut into 256 shards by their address, and all that belongs to a shard
//! lies in one slot (`names`), so one server, a cluster and what sentinels watch work alike
//! (`servers`). No command is ever sent twice: a write whose acknowledgement is lost is
//! [`InDoubt`](crate::StoreError::InDoubt) and is read back (I14).
//!
//! What is weaker: a server acknowledges before its replicas have the write, so a failover may forget
//! the latest claims, and their keys run again; and without `appendfsync always`, so may a crash.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use onlyonce_store::{Store, redis::{Options, RedisStore}};
//!
//! let store = RedisStore::open("redis://:password@cache:6379", Options::default()).await?;
//! for warning in store.warnings() {
//!     eprintln!("{warning}");
//! }
//! store.close().await?;
//! # Ok(())
//! # }
//! ```

mod books;
mod check;
mod failure;
mod figures;
mod head;
mod lists;
mod mark;
mod names;
mod node;
mod open;
mod scripts;
mod servers;
mod show;
mod store;
mod upkeep;
mod url;
mod watch;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use parking_lot::RwLock;

use self::{
    books::{Folded, ToldOf},
    figures::Figures,
    node::NodeClock,
    servers::Servers,
    watch::Listeners,
};
pub use self::{
    failure::Refusal,
    open::{OpenError, make},
    url::UrlError,
};
pub use crate::seal::{EncryptionKeys, SealError};
use crate::{clock::Clock, seal::Sealer};

/// How a Redis store is opened.
#[derive(Clone)]
pub struct Options {
    /// How long a connection may take to be made. Default 2 s.
    pub connect_timeout: Duration,
    /// How long an answer may take. A claim that the server gets to later than three quarters of it
    /// is not carried out. Default 2 s.
    pub response_timeout: Duration,
    /// Certificates of authorities to trust instead of the system's, as PEM. Default none.
    pub root_certificates: Option<Vec<u8>>,
    /// The most records, at best effort. Default no limit: the server's `maxmemory` is one.
    pub max_records: u64,
    /// The most records of one tenant, at best effort. Default no limit.
    pub max_tenant_records: u64,
    /// Keys for encryption at rest. Default none.
    pub encryption: Option<EncryptionKeys>,
    /// For tests: a clock in the place of the server's.
    pub clock: Option<Arc<dyn Clock>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(2),
            root_certificates: None,
            max_records: u64::MAX,
            max_tenant_records: u64::MAX,
            encryption: None,
            clock: None,
        }
    }
}

/// A store on Redis or Valkey. Its clones are one store.
#[derive(Clone)]
pub struct RedisStore {
    inner: Arc<Inner>,
}

struct Inner {
    servers: Servers,
    secret: [u8; 32],
    sealer: Option<Sealer>,
    warnings: Vec<String>,
    given_clock: Option<Arc<dyn Clock>>,
    home_clock: RwLock<Arc<NodeClock>>,
    /// The latest time that [`Store::now`](crate::Store::now) gave, in milliseconds.
    latest: AtomicU64,
    figures: Figures,
    max_records: u64,
    max_tenant_records: u64,
    listeners: Arc<Listeners>,
    folded: Folded,
    told_of: ToldOf,
    /// Where the next look for overdue leases starts.
    first_shard: AtomicU64,
    closed: AtomicBool,
}

impl RedisStore {
    /// Opens the store on the servers that `url` names, and makes it where it is not there. See
    /// [`UrlError`] for how a URL looks.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub async fn open(url: &str, options: Options) -> Result<Self, OpenError> {
        open::open(url, options).await
    }

    /// What an operator should know about the servers' settings: a sentence each, with what to do.
    pub fn warnings(&self) -> &[String] {
        &self.inner.warnings
    }
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore").finish_non_exhaustive()
    }
}
