//! The embedded store: one machine, one process, one folder.
//!
//! Everything is appended to one log, and one sync makes durable all that waits for it, claims and
//! completions alike (`log`). An index in memory says where each record lies (`index`); bodies
//! stay on disk, and recordings that are asked for again are kept in a bounded cache. The log is cut
//! into segments, and the oldest is dropped as a whole when nothing in it counts any more
//! (`sweep`). What a crash or a power cut leaves is read back by `recover` and settled by `left`.
//!
//! ```
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use onlyonce_store::{EmbeddedStore, Store, embedded::Options};
//!
//! let folder = tempfile::tempdir()?;
//! let store = EmbeddedStore::open(folder.path(), Options::default())?;
//! assert_eq!(store.status().records, 0);
//! store.close().await?;
//! # Ok(())
//! # }
//! ```

mod attempts;
mod body;
mod books;
mod catalog;
mod census;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
#[cfg(test)]
mod gate_tests;
mod index;
mod largest;
mod layout;
mod left;
mod lists;
mod log;
mod open;
mod recordings;
mod recover;
mod segment;
mod shard;
mod store;
mod sweep;
mod sync;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use parking_lot::Mutex;

pub use self::open::{OpenError, make};
use self::{books::Ledger, census::Census, index::Index, log::Log, store::Hot};
pub use crate::seal::{EncryptionKeys, SealError};
use crate::{
    Mark,
    clock::{Clock, SystemClock},
    seal::Sealer,
};

/// How an embedded store is opened.
#[derive(Clone)]
pub struct Options {
    /// The largest size of a segment, in bytes; at least 1 MiB. Default 32 MiB.
    pub segment_bytes: u32,
    /// The size of the cache of hot recordings, in bytes. Default 64 MiB.
    pub cache_bytes: u64,
    /// The most that the log may hold, in bytes; 0 for no limit. Default 64 GiB.
    pub max_bytes: u64,
    /// The most records; each takes about 100 bytes of memory. Default 4,000,000.
    pub max_records: u64,
    /// The most records of one tenant. Default 2,000,000.
    pub max_tenant_records: u64,
    /// Keys for encryption at rest. Default none.
    pub encryption: Option<EncryptionKeys>,
    /// The clock; by default the wall clock as it stood at the start, moved on by the monotonic
    /// one, and never before the latest time that the folder speaks of.
    pub clock: Option<Arc<dyn Clock>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 32 << 20,
            cache_bytes: 64 << 20,
            max_bytes: 64 << 30,
            max_records: 4_000_000,
            max_tenant_records: 2_000_000,
            encryption: None,
            clock: None,
        }
    }
}

/// The embedded store. Its clones are one store.
#[derive(Clone)]
pub struct EmbeddedStore {
    inner: Arc<Inner>,
}

struct Inner {
    log: Log,
    ledger: Arc<Ledger>,
    index: Index,
    hot: Hot,
    secret: [u8; 32],
    sealer: Option<Sealer>,
    clock: Arc<dyn Clock>,
    max_records: u64,
    census: Census,
    dir: PathBuf,
    mark: Mutex<Option<Mark>>,
    /// Whether that mark keeps claims away.
    refuses_claims: AtomicBool,
    /// Held as long as the store is.
    _lock: std::fs::File,
}

impl EmbeddedStore {
    /// Opens the data folder `dir`, making it where it is not there.
    ///
    /// Operations that were in flight when the former process ended become unknown, durably, before
    /// this returns (L3), and so do completed ones whose recordings are not all there (I13). Blocks: start-up is not a place to be asynchronous.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]; nothing in the folder was changed then, but for its lock file.
    pub fn open(dir: &Path, options: Options) -> Result<Self, OpenError> {
        let opened = open::open(dir, &options)?;
        let clock = options
            .clock
            .unwrap_or_else(|| Arc::new(SystemClock::not_before(opened.latest)));
        let ledger = Arc::new(opened.ledger);
        let segment_bytes = options.segment_bytes.max(log::SMALLEST_SEGMENT);
        let log = Log::start(
            dir,
            opened.seeds,
            opened.segments,
            opened.last_seq,
            segment_bytes,
            options.max_bytes,
            ledger.clone(),
        )
        .map_err(|error| OpenError::Io {
            path: dir.to_owned(),
            error,
        })?;
        let census = Census::of(&opened.index, options.max_tenant_records);
        let inner = Inner {
            log,
            ledger,
            index: opened.index,
            hot: store::hot(options.cache_bytes),
            secret: opened.secret,
            sealer: opened.sealer,
            clock,
            max_records: options.max_records,
            census,
            dir: dir.to_owned(),
            refuses_claims: AtomicBool::new(open::refuses_claims(opened.mark.as_ref())),
            mark: Mutex::new(opened.mark),
            _lock: opened.lock,
        };
        let store = Self {
            inner: Arc::new(inner),
        };
        store
            .inner
            .settle_what_was_left(&opened.broken)
            .map_err(|error| OpenError::Io {
                path: dir.to_owned(),
                error,
            })?;
        Ok(store)
    }
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore").finish_non_exhaustive()
    }
}
