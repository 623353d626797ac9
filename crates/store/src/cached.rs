//! A cache of completed recordings over a store that several gateways share.
//!
//! A completed record does not change until its window ends, so whoever has seen it can replay it
//! without asking again. Everything else is asked of the store.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use std::sync::Arc;
//! use onlyonce_store::{Cached, MemoryStore, cached::Options};
//!
//! let shared = Arc::new(MemoryStore::new());
//! let options = Options { bytes: 16 << 20, ..Options::default() };
//! let store = Cached::new(shared, options);
//! # let _ = store;
//! # }
//! ```

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use onlyonce_core::{
    Address, Attempt, Completed, Entry, Fence, OperationId, OwnerId, Posting, Record, RecordingId,
    State, Timestamp,
};
use parking_lot::Mutex;
use quick_cache::{Weighter, sync::Cache};
use tokio::task::AbortHandle;

use crate::{
    AttemptNote, Books, Mark, Page, Query, Seen, Shown, Status, Store, StoreError, Stored, Swap,
    Swept, Walked, Write,
    books::{
        Advance, Booked, Cell, DeadLetter, EntryPage, EntryQuery, Held, Hold, Position, SumsQuery,
    },
    clock::{Clock, SystemClock},
};

mod newness;
mod notes;

use newness::Newness;
use notes::{Notes, Tally};

/// How many locks guard the changes of entries: addresses are hashes, and spread evenly.
const STRIPES: usize = 1 << 10;
/// What an entry costs besides the bytes that it carries.
const AROUND_A_RECORD: u64 = 1 << 10;
const AROUND_A_CHUNK: u64 = 256;
/// How long a store that closes waits for the notes of attempts that it has not passed on yet.
const LAST_NOTES: Duration = Duration::from_secs(2);

/// How a [`Cached`] store caches.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The most bytes that it holds. Default 64 MiB.
    pub bytes: u64,
    /// How long a record is replayed after the store last confirmed it: a record that is removed by
    /// way of another gateway is replayed here for no longer than this. Default 10 seconds.
    pub confirmed_for: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            confirmed_for: Duration::from_secs(10),
        }
    }
}

/// A shared store, with the completed recordings that this process has seen kept in its memory.
///
/// While most keys are new, an attempt had better claim without a look ([`Store::claim_first`]), which
/// spares a round trip.
///
/// A load is answered from here if the record is completed, its window has not ended on the store's
/// clock (I11), and the store has confirmed it within [`Options::confirmed_for`]. A claim, and every
/// other write, always asks the store (I12). While that is down, what is warm is still replayed for
/// as long as it counts as confirmed: it is the true first answer.
///
/// Attempts at a warm record are numbered here and noted in the store by a task of their own, so that
/// a replay waits for nothing. The numbers are one more than the largest that this process knows of:
/// unique in it for as long as the record stays in the cache or a note of it is on its way. Another
/// gateway may give the same number at the same moment, and the log in the store has its own. What
/// comes faster than the store is asked to take it is not noted; the latest attempts of an operation
/// go first.
pub struct Cached<S> {
    store: Arc<S>,
    /// Runs while the store's clock may stand still.
    clock: Box<dyn Clock>,
    confirmed_for: Duration,
    warm: Cache<Place, Warm, Weight>,
    /// How often something has changed, by address: what was loaded meanwhile is not kept.
    changes: Box<[Mutex<u64>]>,
    newness: Newness,
    notes: Arc<Notes>,
    noting: AbortHandle,
}

impl<S: Store> Cached<S> {
    /// Caches what `store` says.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, where nothing can run beside the callers.
    pub fn new(store: Arc<S>, options: Options) -> Self {
        Self::with_clock(store, options, SystemClock::new())
    }

    /// The same, with the age of confirmations measured on `clock`.
    ///
    /// # Panics
    ///
    /// As [`Cached::new`].
    pub fn with_clock(store: Arc<S>, options: Options, clock: impl Clock) -> Self {
        let notes = Arc::new(Notes::default());
        let noting = tokio::spawn(notes.clone().pass_on(store.clone()));
        Self {
            store,
            clock: Box::new(clock),
            confirmed_for: options.confirmed_for,
            warm: cache(options.bytes),
            changes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            newness: Newness::default(),
            notes,
            noting: noting.abort_handle(),
        }
    }

    /// The store behind.
    pub fn behind(&self) -> &S {
        &self.store
    }

    /// The record at `address`, if it may be replayed without asking.
    fn warm(&self, address: Address) -> Option<WarmRecord> {
        let record = self.held(address)?;
        let age = self.clock.now().since(record.confirmed_at);
        let counts = self.store.now() < record.expires_at;
        (counts && age < self.confirmed_for).then_some(record)
    }

    /// The record that is held of `address`, fresh or not.
    fn held(&self, address: Address) -> Option<WarmRecord> {
        match self.warm.get(&Place::record(address)) {
            Some(Warm::Record(record)) => Some(record),
            _ => None,
        }
    }

    fn stripe(&self, address: Address) -> &Mutex<u64> {
        let [high, low, ..] = *address.as_bytes();
        &self.changes[usize::from(u16::from_be_bytes([high, low])) % STRIPES]
    }

    /// Whoever asks the store about `address` looks here first.
    fn look(&self, address: Address) -> Look {
        Look {
            changes: *self.stripe(address).lock(),
            at: self.clock.now(),
        }
    }

    /// Drops what is held of `address`, and what is on its way here.
    fn forget(&self, address: Address) {
        let mut changes = self.stripe(address).lock();
        *changes += 1;
        self.warm.remove(&Place::record(address));
    }

    /// Keeps what the store said after `look`, unless something has changed since.
    fn keep(&self, address: Address, look: Look, found: Found) {
        let record = WarmRecord {
            expires_at: found.expires_at,
            confirmed_at: look.at,
            record: found.record,
            last_chunk: found.last_chunk,
            tally: found.tally,
        };
        let changes = self.stripe(address).lock();
        if *changes == look.changes {
            self.warm
                .insert(Place::record(address), Warm::Record(record));
        }
    }

    async fn load_and_keep(&self, address: Address) -> Result<Option<Stored>, StoreError> {
        let look = self.look(address);
        let loaded = self.store.load(address).await;
        if let Ok(found) = &loaded {
            self.newness.learn(found.is_none());
        }
        let Ok(Some(mut stored)) = loaded else {
            // Where nothing was said, the next answer tells whether the entry was true.
            if matches!(loaded, Ok(None) | Err(StoreError::Corrupt(_))) {
                self.forget(address);
            }
            return loaded;
        };
        match completed(&stored.record) {
            Some(completed) if whole(completed, stored.last_chunk.as_ref()) => {
                let tally = self.notes.tally(address, stored.record.id);
                stored.attempts = tally.raise(stored.attempts);
                let found = Found {
                    expires_at: completed.expires_at,
                    record: stored.record.clone(),
                    last_chunk: stored.last_chunk.clone(),
                    tally,
                };
                self.keep(address, look, found);
            }
            _ => self.forget(address),
        }
        Ok(Some(stored))
    }

    async fn write(
        &self,
        address: Address,
        expected: Option<Fence>,
        write: Write,
    ) -> Result<Swap, StoreError> {
        let mut changing = Changing::start(self, address);
        let completes = completed(&write.record).map(|completed| {
            // A slice of a larger buffer would keep all of that in memory.
            let last_chunk = write.last_chunk.as_deref().map(Bytes::copy_from_slice);
            (
                completed.expires_at,
                Arc::new(write.record.clone()),
                last_chunk,
            )
        });
        let swap = self.store.compare_and_set(address, expected, write).await?;
        if expected.is_none() {
            self.newness.learn(swap != Swap::Lost);
        }
        if let (Swap::Done { attempts }, Some((expires_at, record, last_chunk))) = (swap, completes)
        {
            let tally = self.notes.tally(address, record.id);
            tally.raise(attempts);
            changing.became = Some(Found {
                expires_at,
                record,
                last_chunk,
                tally,
            });
        }
        Ok(swap)
    }

    /// A chunk of the recording of `warm`.
    fn warm_chunk(&self, address: Address, warm: &WarmRecord, chunk: u32) -> Option<Bytes> {
        if let Some(bytes) = warm.last_chunk_if(chunk) {
            return Some(bytes);
        }
        match self.warm.get(&Place::chunk(address, chunk)) {
            Some(Warm::Chunk(of, bytes)) if of == warm.record.recording() => Some(bytes),
            _ => None,
        }
    }

    async fn read_and_keep(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
        is_warm: bool,
    ) -> Result<Bytes, StoreError> {
        let read = self.store.read(address, recording, chunk).await;
        match &read {
            // It was completed before the chunk was read, so this is what it stays.
            Ok(bytes) if is_warm => {
                let warm = Warm::Chunk(recording, bytes.clone());
                self.warm.insert(Place::chunk(address, chunk), warm);
            }
            // The record counts as unknown from now on (I13).
            Err(StoreError::Corrupt(_)) => self.forget(address),
            _ => {}
        }
        read
    }
}

/// The books are not cached.
impl<S: Store> Books for Cached<S> {
    async fn book(&self) -> Result<Booked, StoreError> {
        Box::pin(self.store.book()).await
    }

    async fn post(&self, postings: Vec<Posting>) -> Result<(), StoreError> {
        Box::pin(self.store.post(postings)).await
    }

    async fn feed(
        &self,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<(Position, Entry)>, StoreError> {
        Box::pin(self.store.feed(after, limit)).await
    }

    async fn entries(&self, query: EntryQuery) -> Result<EntryPage, StoreError> {
        Box::pin(self.store.entries(query)).await
    }

    async fn sums(&self, query: SumsQuery) -> Result<Vec<Cell>, StoreError> {
        Box::pin(self.store.sums(query)).await
    }

    async fn hold(&self, hold: Hold) -> Result<Option<Held>, StoreError> {
        Box::pin(self.store.hold(hold)).await
    }

    async fn advance(&self, step: Advance) -> Result<bool, StoreError> {
        Box::pin(self.store.advance(step)).await
    }

    async fn dead(
        &self,
        sink: &str,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        Box::pin(self.store.dead(sink, after, limit)).await
    }

    async fn forget_dead(&self, sink: &str, ids: &[OperationId]) -> Result<u64, StoreError> {
        Box::pin(self.store.forget_dead(sink, ids)).await
    }

    async fn trim(&self, before: Timestamp) -> Result<Swept, StoreError> {
        Box::pin(self.store.trim(before)).await
    }
}

// The futures of a store behind a network are large. Boxed here, they cost what is answered from memory
// nothing.
impl<S: Store> Store for Cached<S> {
    fn now(&self) -> Timestamp {
        self.store.now()
    }

    fn secret(&self) -> &[u8; 32] {
        self.store.secret()
    }

    async fn load(&self, address: Address) -> Result<Option<Stored>, StoreError> {
        match self.warm(address) {
            Some(warm) => Ok(Some(warm.stored())),
            None => Box::pin(self.load_and_keep(address)).await,
        }
    }

    fn claim_first(&self, address: Address) -> bool {
        self.newness.prevails() && self.warm(address).is_none()
    }

    fn may_forget(&self) -> bool {
        self.store.may_forget()
    }

    async fn compare_and_set(
        &self,
        address: Address,
        expected: Option<Fence>,
        write: Write,
    ) -> Result<Swap, StoreError> {
        Box::pin(self.write(address, expected, write)).await
    }

    async fn append(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        Box::pin(self.store.append(address, recording, chunk, bytes)).await
    }

    async fn read(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
    ) -> Result<Bytes, StoreError> {
        let warm = self
            .warm(address)
            .filter(|warm| warm.record.recording() == recording);
        let bytes = warm
            .as_ref()
            .and_then(|warm| self.warm_chunk(address, warm, chunk));
        match bytes {
            Some(bytes) => Ok(bytes),
            None => {
                let read = self.read_and_keep(address, recording, chunk, warm.is_some());
                Box::pin(read).await
            }
        }
    }

    async fn note_attempt(
        &self,
        address: Address,
        id: OperationId,
        note: AttemptNote,
    ) -> Result<u32, StoreError> {
        match self.held(address).filter(|held| held.record.id == id) {
            Some(held) => Ok(self.notes.take(&held.tally, note)),
            None => Box::pin(self.store.note_attempt(address, id, note)).await,
        }
    }

    async fn attempts(
        &self,
        address: Address,
        id: OperationId,
    ) -> Result<Vec<Attempt>, StoreError> {
        Box::pin(async {
            self.notes.settle(id, &*self.store).await;
            self.store.attempts(address, id).await
        })
        .await
    }

    async fn find(&self, id: OperationId) -> Result<Option<Address>, StoreError> {
        Box::pin(self.store.find(id)).await
    }

    async fn list(&self, query: Query) -> Result<Page, StoreError> {
        Box::pin(self.store.list(query)).await
    }

    async fn remove(&self, address: Address, fence: Fence) -> Result<bool, StoreError> {
        let _changing = Changing::start(self, address);
        Box::pin(self.store.remove(address, fence)).await
    }

    async fn sweep(&self) -> Result<Swept, StoreError> {
        Box::pin(self.store.sweep()).await
    }

    async fn overdue(&self, limit: usize) -> Result<Vec<(Address, Record)>, StoreError> {
        Box::pin(self.store.overdue(limit)).await
    }

    async fn follow(
        &self,
        address: Address,
        recording: RecordingId,
        owner: OwnerId,
        seen: Seen,
        at_most: Duration,
    ) -> Result<Option<Shown>, StoreError> {
        Box::pin(self.store.follow(address, recording, owner, seen, at_most)).await
    }

    async fn followed(&self, owner: OwnerId) -> Result<Vec<Address>, StoreError> {
        Box::pin(self.store.followed(owner)).await
    }

    async fn show(
        &self,
        address: Address,
        recording: RecordingId,
        shown: Shown,
    ) -> Result<(), StoreError> {
        Box::pin(self.store.show(address, recording, shown)).await
    }

    async fn mark(&self) -> Result<Option<Mark>, StoreError> {
        Box::pin(self.store.mark()).await
    }

    async fn set_mark(&self, expected: Option<Mark>, to: Option<Mark>) -> Result<bool, StoreError> {
        Box::pin(self.store.set_mark(expected, to)).await
    }

    async fn walk(&self, after: Option<Walked>, limit: usize) -> Result<Vec<Walked>, StoreError> {
        Box::pin(self.store.walk(after, limit)).await
    }

    fn status(&self) -> Status {
        self.store.status()
    }

    async fn close(&self) -> Result<(), StoreError> {
        let last_notes = Box::pin(self.notes.settle_all(&self.store));
        if tokio::time::timeout(LAST_NOTES, last_notes).await.is_err() {
            tracing::debug!("the store took the last notes of attempts too slowly");
        }
        Box::pin(self.store.close()).await
    }
}

impl<S> Drop for Cached<S> {
    fn drop(&mut self) {
        self.noting.abort();
    }
}

impl<S> std::fmt::Debug for Cached<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cached")
            .field("entries", &self.warm.len())
            .field("bytes", &self.warm.weight())
            .finish_non_exhaustive()
    }
}

/// The moment at which the store was asked.
#[derive(Clone, Copy)]
struct Look {
    changes: u64,
    at: Timestamp,
}

/// A completed record that the store has, with its last chunk.
struct Found {
    expires_at: Timestamp,
    record: Arc<Record>,
    last_chunk: Option<Bytes>,
    tally: Arc<Tally>,
}

/// A write at an address. Nothing is held of it from the start, and nothing that was loaded meanwhile
/// from the end, however that comes: refused, lost, or not waited for.
struct Changing<'a, S: Store> {
    cached: &'a Cached<S>,
    address: Address,
    look: Look,
    became: Option<Found>,
}

impl<'a, S: Store> Changing<'a, S> {
    fn start(cached: &'a Cached<S>, address: Address) -> Self {
        cached.forget(address);
        Self {
            cached,
            address,
            look: cached.look(address),
            became: None,
        }
    }
}

impl<S: Store> Drop for Changing<'_, S> {
    fn drop(&mut self) {
        match self.became.take() {
            Some(found) => self.cached.keep(self.address, self.look, found),
            None => self.cached.forget(self.address),
        }
    }
}

/// Where something lies in the cache: a record, or one chunk of a recording.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    address: Address,
    chunk: Option<u32>,
}

impl Place {
    fn record(address: Address) -> Self {
        Self {
            address,
            chunk: None,
        }
    }

    fn chunk(address: Address, number: u32) -> Self {
        Self {
            address,
            chunk: Some(number),
        }
    }
}

#[derive(Clone)]
enum Warm {
    Record(WarmRecord),
    /// Good only beside its record.
    Chunk(RecordingId, Bytes),
}

#[derive(Clone)]
struct WarmRecord {
    expires_at: Timestamp,
    confirmed_at: Timestamp,
    record: Arc<Record>,
    last_chunk: Option<Bytes>,
    tally: Arc<Tally>,
}

impl WarmRecord {
    fn stored(self) -> Stored {
        Stored {
            record: self.record,
            attempts: self.tally.last(),
            last_chunk: self.last_chunk,
        }
    }

    /// The last chunk, if it is number `chunk`.
    fn last_chunk_if(&self, chunk: u32) -> Option<Bytes> {
        let chunks = completed(&self.record)?.chunks;
        self.last_chunk
            .clone()
            .filter(|_| chunk.checked_add(1) == Some(chunks))
    }
}

fn completed(record: &Record) -> Option<&Completed> {
    match &record.state {
        State::Completed(completed) => Some(completed),
        _ => None,
    }
}

fn whole(completed: &Completed, last_chunk: Option<&Bytes>) -> bool {
    last_chunk.is_some() == (completed.chunks > 0)
}

/// Weighs entries by their bytes.
#[derive(Clone)]
struct Weight;

impl Weighter<Place, Warm> for Weight {
    fn weight(&self, _: &Place, warm: &Warm) -> u64 {
        match warm {
            Warm::Chunk(_, bytes) => AROUND_A_CHUNK + bytes.len() as u64,
            Warm::Record(warm) => {
                let record = &warm.record;
                let headers = completed(record).map_or(0, |completed| {
                    completed.head.headers.as_bytes().len() + completed.trailers.as_bytes().len()
                });
                let last_chunk = warm.last_chunk.as_ref().map_or(0, Bytes::len);
                let names = record.key.as_str().len()
                    + record.scope.tenant.len()
                    + record.scope.namespace.len()
                    + record.request.route.len()
                    + record.request.path.len();
                AROUND_A_RECORD + (headers + last_chunk + names) as u64
            }
        }
    }
}

fn cache(bytes: u64) -> Cache<Place, Warm, Weight> {
    // A part of the cache holds 32 such entries or more, and so four of the largest at least.
    const EXPECTED: u64 = 32 << 10;
    let entries = usize::try_from(bytes / EXPECTED).unwrap_or(usize::MAX);
    Cache::with_weighter(entries.max(16), bytes, Weight)
}

#[cfg(test)]
mod tests {
    use onlyonce_core::{
        Fingerprint, Head, HeaderBlock, Key, RequestLine, Scope,
        transition::{self, Claim, Response},
    };

    use super::*;
    use crate::MemoryStore;

    const ADDRESS: Address = Address::from_bytes([7; 16]);

    fn finished(cached: &Cached<MemoryStore>) -> Found {
        let now = cached.now();
        let claim = Claim {
            // The same one, however long it takes to make two.
            id: OperationId::new(7, &[1; 10]),
            scope: Scope {
                tenant: "acme".into(),
                namespace: "openai".into(),
            },
            key: Key::new("k").expect("a key"),
            fingerprint: Fingerprint::from_bytes([7; 32]),
            request: RequestLine::default(),
            owner: OwnerId::new(1),
            raise: std::num::NonZero::<u32>::MIN,
        };
        let hour = Duration::from_secs(3600);
        let record = transition::claim(None, claim, now, hour).expect("a new key");
        let response = Response {
            head: Head::default(),
            trailers: HeaderBlock::default(),
            body_len: 0,
            chunks: 0,
        };
        let fence = record.fence();
        let record = transition::complete(Some(&record), fence, response, now, hour);
        let record = record.expect("it runs");
        Found {
            expires_at: now.after(hour),
            last_chunk: None,
            tally: cached.notes.tally(ADDRESS, record.id),
            record: Arc::new(record),
        }
    }

    /// What was loaded before a removal does not come back after it.
    #[tokio::test]
    async fn what_was_loaded_before_a_change_is_not_kept_after_it() {
        let cached = Cached::new(Arc::new(MemoryStore::new()), Options::default());
        let look = cached.look(ADDRESS);
        cached.keep(ADDRESS, look, finished(&cached));
        assert!(cached.warm(ADDRESS).is_some());

        let removed = cached.remove(ADDRESS, finished(&cached).record.fence());
        assert!(!removed.await.expect("it answers"), "the store has nothing");
        assert!(cached.warm(ADDRESS).is_none(), "dropped before the removal");
        cached.keep(ADDRESS, look, finished(&cached));
        assert!(cached.warm(ADDRESS).is_none(), "kept after the removal");

        // A removal that nobody waited for to its end may have happened.
        let during = {
            let _changing = Changing::start(&cached, ADDRESS);
            cached.look(ADDRESS)
        };
        cached.keep(ADDRESS, during, finished(&cached));
        assert!(cached.warm(ADDRESS).is_none(), "kept after its end");
    }

    #[tokio::test]
    async fn numbers_are_forgotten_with_the_last_who_needs_them() {
        let cached = Cached::new(Arc::new(MemoryStore::new()), Options::default());
        let found = finished(&cached);
        found.tally.raise(9);
        assert_eq!(finished(&cached).tally.last(), 9, "one tally an operation");
        drop(found);
        assert_eq!(finished(&cached).tally.last(), 0);
    }
}
