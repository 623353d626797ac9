//! Where Onlyonce keeps its records and recordings.
//!
//! [`Store`] is the one small trait; backends hold no protocol. They carry records that
//! [`onlyonce_core::transition`] made, compare fences, keep bytes and tell the time. The public
//! [`conformance`] suite says what a backend must do, and every backend runs it.

#[cfg(any(feature = "postgres", feature = "redis"))]
use std::ops::RangeInclusive;
use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use onlyonce_core::{
    Address, Attempt, Fence, Got, Key, OperationId, OwnerId, Record, RecordingId, Scope, StateName,
    Timestamp, TraceId,
    planted::{Bug, planted},
    transition::Breach,
};

pub mod books;
pub mod cached;
pub mod clock;
pub mod codec;
mod commits;
pub mod conformance;
pub mod embedded;
mod mark;
pub mod memory;
mod pack;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod parcel;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
mod seal;
mod shown;
mod tags;

pub use books::Books;
pub use cached::Cached;
pub use commits::{COMMIT_TIMES, GROUP_SIZES};
pub use embedded::EmbeddedStore;
pub use mark::Mark;
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
#[cfg(feature = "redis")]
pub use redis::RedisStore;
pub use shown::{Seen, Shown};
pub(crate) use tags::{Tags, WantedTags, tag};

/// A place for records and recordings that any number of tasks may use at once.
///
/// A recording is a body cut into chunks, numbered from 0. [`Store::append`] adds chunks while the
/// response arrives; the last one comes with the record that completes the operation, in the same
/// write, so that one durable commit covers both. The entry that comes with it for the books
/// ([`Entry::of`](onlyonce_core::Entry::of)) is kept in that commit too.
pub trait Store: Books {
    /// The store's clock. It never runs backwards within one life of the store, and a jump of a
    /// gateway's wall clock does not move it (I11).
    fn now(&self) -> Timestamp;

    /// The secret under which addresses, fingerprints and credentials are hashed: drawn at random
    /// when the store was made, the same for every gateway that shares the store.
    fn secret(&self) -> &[u8; 32];

    /// The record at `address` as it stands, expired or not. What it tells is durable (I3).
    ///
    /// [`StoreError::Corrupt`] where something is there and cannot be read (I13).
    fn load(
        &self,
        address: Address,
    ) -> impl Future<Output = Result<Option<Stored>, StoreError>> + Send;

    /// Whether an attempt at `address` had better claim at once, and look only where that is lost. A
    /// guess of what costs less, where a look is a round trip; either order is right.
    fn claim_first(&self, address: Address) -> bool {
        let _ = address;
        false
    }

    /// Whether it may forget at a failover what it has acknowledged. A claim over a record then raises
    /// the epoch by a number drawn at random: see [`Epoch`](onlyonce_core::Epoch).
    fn may_forget(&self) -> bool {
        false
    }

    /// Writes `write.record` if the record that counts at `address` has the fence `expected`;
    /// `None` expects that none counts (absent, or expired on the store's clock).
    ///
    /// Returns once the write is durable. A new claim also notes the first attempt in it.
    ///
    /// What is no arrow of the protocol is never written (I8). Where the fence stands, a store that
    /// [may forget](Store::may_forget) says [`Swap::Lost`], and every other panics: it is a bug there.
    fn compare_and_set(
        &self,
        address: Address,
        expected: Option<Fence>,
        write: Write,
    ) -> impl Future<Output = Result<Swap, StoreError>> + Send;

    /// Adds chunk number `chunk`, of at most [`MAX_CHUNK`] bytes, to `recording`. It need not be
    /// durable before the write that completes the record.
    ///
    /// [`StoreError::Fenced`], and nothing is written, unless the record at `address` is in flight or
    /// unknown under that very claim: who was overtaken writes into nobody's recording (I9).
    fn append(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
        bytes: Bytes,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Chunk number `chunk` of `recording`; [`StoreError::Corrupt`] where it is not there, or cannot
    /// be read. A chunk of another claim is not there.
    ///
    /// A completed record of which a chunk cannot be read counts as unknown from then on, under the
    /// fence that it has (I13; see [`Record::without_recording`]): whoever comes next is told so, and
    /// an operator can resolve it.
    fn read(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
    ) -> impl Future<Output = Result<Bytes, StoreError>> + Send;

    /// Notes one more attempt and returns its number. Kept at best effort: a crash may forget
    /// the latest ones, and only the latest [`MAX_ATTEMPTS_KEPT`] are kept.
    fn note_attempt(
        &self,
        address: Address,
        id: OperationId,
        note: AttemptNote,
    ) -> impl Future<Output = Result<u32, StoreError>> + Send;

    /// The attempts kept of `id`, oldest first.
    fn attempts(
        &self,
        address: Address,
        id: OperationId,
    ) -> impl Future<Output = Result<Vec<Attempt>, StoreError>> + Send;

    /// Where the operation `id` is kept.
    fn find(
        &self,
        id: OperationId,
    ) -> impl Future<Output = Result<Option<Address>, StoreError>> + Send;

    /// One page of the records that count, newest operation first. A page may be short, or empty, and have
    /// a cursor: a store may look at no more than [`MOST_LOOKED_AT`](books::MOST_LOOKED_AT) operations
    /// for a page.
    fn list(&self, query: Query) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Removes the record and its recording if its fence is `fence`; durable on return.
    fn remove(
        &self,
        address: Address,
        fence: Fence,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Drops what has expired and gives its space back. Called every few seconds.
    fn sweep(&self) -> impl Future<Output = Result<Swept, StoreError>> + Send;

    /// The operations that are in flight under a lease that has passed, at most `limit`.
    fn overdue(
        &self,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(Address, Record)>, StoreError>> + Send;

    /// Asks `owner` to show the recording that it writes, and waits for something that was not
    /// `seen` yet, for at most `at_most`. `None` where nothing came: the record may tell more.
    ///
    /// A backend without this lets others see an answer once its record is completed.
    fn follow(
        &self,
        address: Address,
        recording: RecordingId,
        owner: OwnerId,
        seen: Seen,
        at_most: Duration,
    ) -> impl Future<Output = Result<Option<Shown>, StoreError>> + Send {
        let _ = (address, recording, owner, seen);
        async move {
            tokio::time::sleep(at_most).await;
            Ok(None)
        }
    }

    /// Waits until other gateways follow recordings of `owner` that are not shown yet, and returns
    /// where those are. The same one may come more than once.
    fn followed(
        &self,
        owner: OwnerId,
    ) -> impl Future<Output = Result<Vec<Address>, StoreError>> + Send {
        let _ = owner;
        std::future::pending()
    }

    /// Shows more of a recording to those who follow it, at best effort.
    fn show(
        &self,
        address: Address,
        recording: RecordingId,
        shown: Shown,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let _ = (address, recording, shown);
        async { Ok(()) }
    }

    /// What the store is marked as.
    fn mark(&self) -> impl Future<Output = Result<Option<Mark>, StoreError>> + Send;

    /// Marks the store as `to`, durably, where it is marked as `expected`; says whether it was. To say
    /// the same mark again ends what was begun and broke off.
    ///
    /// Once this has returned with [`Mark::Moved`], no claim is taken any more, from whichever
    /// gateway: [`StoreError::Unavailable`], and nothing is written. All other writes are taken.
    fn set_mark(
        &self,
        expected: Option<Mark>,
        to: Option<Mark>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// The next places at which something is held, at most `limit`, in an order of the store's own
    /// that begins after `after`; empty at the end. Whatever stands there: what has expired and was not
    /// swept yet, and what cannot be read (I13). What comes while this goes on may be left out.
    fn walk(
        &self,
        after: Option<Walked>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Walked>, StoreError>> + Send;

    /// Whether the store takes writes, and what it holds. Cheap.
    fn status(&self) -> Status;

    /// Makes everything durable and stops taking writes.
    fn close(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// The most bytes that one chunk of a recording may have.
pub const MAX_CHUNK: usize = 256 << 10;

/// How many attempts of one operation a store keeps at least; older ones may be forgotten.
pub const MAX_ATTEMPTS_KEPT: usize = 100;

/// A place that [`Store::walk`] came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Walked {
    /// Where something is held.
    pub address: Address,
    /// The operation, as far as the store's index knows.
    pub id: OperationId,
}

/// A record as it was found.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The record.
    pub record: Arc<Record>,
    /// How many attempts there were so far.
    pub attempts: u32,
    /// The last chunk of the recording, which is written with the completed record. Chunk
    /// number `chunks - 1`; present whenever the record is completed and `chunks` is not 0.
    pub last_chunk: Option<Bytes>,
}

/// What is to be written.
#[derive(Clone, Debug)]
pub struct Write {
    /// The record to put in the place of the one expected.
    pub record: Record,
    /// For a completed record with a body: its last chunk, number `chunks - 1`.
    pub last_chunk: Option<Bytes>,
    /// For a claim: the attempt that made it.
    pub attempt: Option<AttemptNote>,
}

/// What there is to note of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptNote {
    /// Where it came from.
    pub peer: Box<str>,
    /// What the caller's SDK said of its own retries.
    pub sdk_retry_count: Option<u32>,
    /// What it got.
    pub got: Got,
    /// The trace that it is part of, where it was in one.
    pub trace: Option<TraceId>,
    /// When it came, on the store's clock, where that is not now: it was noted in another store first.
    pub at: Option<Timestamp>,
}

impl AttemptNote {
    /// The attempt with this number; it came now, unless it says when.
    pub(crate) fn numbered(self, number: u32, now: Timestamp) -> Attempt {
        Attempt {
            number,
            at: self.at.unwrap_or(now),
            peer: self.peer,
            sdk_retry_count: self.sdk_retry_count,
            got: self.got,
            trace: self.trace,
        }
    }
}

/// How a compare-and-set ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// Written and durable. Carries the number of attempts so far.
    Done {
        /// Attempts of the operation, this one included.
        attempts: u32,
    },
    /// Another record counts there; nothing was written.
    Lost,
}

/// Which records a list is to hold.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only this key.
    pub key: Option<Key>,
    /// Only this tenant.
    pub tenant: Option<Box<str>>,
    /// Only this state.
    pub state: Option<StateName>,
    /// Only operations first claimed at or after this moment.
    pub since: Option<Timestamp>,
    /// Only operations first claimed before this moment.
    pub until: Option<Timestamp>,
    /// Only operations older than this one: the cursor of the page before.
    pub older_than: Option<OperationId>,
    /// At most so many.
    pub limit: usize,
}

impl Query {
    /// Whether it wants `record`; the cursor and the limit are not looked at.
    pub(crate) fn wants(&self, record: &Record) -> bool {
        let claimed = record.id.first_claimed();
        let tenant = &record.scope.tenant;
        self.key.as_ref().is_none_or(|key| *key == record.key)
            && self.tenant.as_ref().is_none_or(|wanted| wanted == tenant)
            && self.state.is_none_or(|state| state == record.state.name())
            && self.since.is_none_or(|since| claimed >= since)
            && self.until.is_none_or(|until| claimed < until)
    }
}

/// A page of records, newest first.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The records.
    pub records: Vec<Stored>,
    /// The cursor of the next page, where there may be one.
    pub next: Option<OperationId>,
}

/// What a sweep gave back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Records that expired.
    pub records: u64,
    /// Bytes given back to the file system or the server.
    pub bytes: u64,
}

/// How a store is doing.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Why it takes no writes until it is opened again, where that is so (I12).
    pub poisoned: Option<String>,
    /// Records held, expired ones that were not swept yet included.
    pub records: u64,
    /// Bytes held.
    pub bytes: u64,
    /// Durable commits so far.
    pub commits: u64,
    /// Writes that those commits carried.
    pub committed_writes: u64,
    /// Time that the latest commit took from the first write to durable.
    pub latest_commit: Duration,
    /// Time that all commits took together.
    pub commit_time: Duration,
    /// How many commits took not more than each of [`COMMIT_TIMES`], and more than the one before it;
    /// last, those that took more than all of them.
    pub commits_by_time: [u64; COMMIT_TIMES.len() + 1],
    /// How many commits carried not more writes than each of [`GROUP_SIZES`], likewise.
    pub commits_by_size: [u64; GROUP_SIZES.len() + 1],
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written, and nothing can be said of what is held.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// It may have been written: the acknowledgement was lost. Read back one's own write (I14).
    #[error("the store did not say whether it wrote: {0}")]
    InDoubt(String),
    /// Something is there and cannot be read: damaged, sealed with a key that is not configured, or
    /// of a newer format (I13).
    #[error("the stored data cannot be read: {0}")]
    Corrupt(String),
    /// The claim that this recording belongs to does not stand any more (I9). Nothing was written.
    #[error("the claim that this recording belongs to does not stand any more")]
    Fenced,
    /// A configured limit, or the disk, is full. Nothing was written.
    #[error("the store is full: {0}")]
    Full(String),
    /// A limit on what one tenant may hold is reached; carries its name as it stands in the
    /// configuration. Nothing was written.
    #[error("the limit {0} is reached")]
    OverLimit(&'static str),
}

/// Bytes of an address that follow from the key alone.
const OF_KEY: usize = 4;

/// The address of a key: a keyed hash of tenant, namespace and key, each length-prefixed. Its first four
/// bytes are a keyed hash of the key alone, so that whoever asks for a key without saying whose looks at a
/// few addresses that lie side by side.
pub fn address(secret: &[u8; 32], scope: &Scope, key: &Key) -> Address {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(b"onlyonce address v1");
    let mut parts = &[&*scope.tenant, &*scope.namespace, key.as_str()][..];
    if planted(Bug::ScopeLeftOut) {
        parts = &parts[2..];
    }
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    let mut address = [0; 16];
    let (of_key, of_all) = address.split_at_mut(OF_KEY);
    of_key.copy_from_slice(&tag(secret, key.as_str()).to_be_bytes());
    hasher.finalize_xof().fill(of_all);
    Address::from_bytes(address)
}

/// The tag of the key that `address` is of.
pub(crate) fn key_tag(address: Address) -> u32 {
    let [a, b, c, d, ..] = *address.as_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// The addresses that a key can have, whoever's it is.
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) fn addresses_of_key(secret: &[u8; 32], key: &Key) -> RangeInclusive<Address> {
    let [first, last] = [0, u8::MAX].map(|rest| {
        let mut address = [rest; 16];
        address[..OF_KEY].copy_from_slice(&tag(secret, key.as_str()).to_be_bytes());
        Address::from_bytes(address)
    });
    first..=last
}

/// What a store that may forget says to a writer whose record must not follow what stands under the very
/// fence that it presents: that it has lost. The store has forgotten what the writer saw, and was given
/// another record in its place; or it is a bug, which is why it is said aloud.
pub(crate) fn forgotten(record: &Record, breach: &Breach) -> Swap {
    tracing::error!(
        operation = %record.id, %breach,
        "a write was refused: what its writer has seen under this fence does not stand there any more"
    );
    Swap::Lost
}

/// Something is there and cannot be read (I13).
pub(crate) fn corrupt(why: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(why.to_string())
}

/// Panics unless a completed record with a body comes with its last chunk, and no other does.
pub(crate) fn assert_whole(write: &Write) {
    let wants = matches!(&write.record.state, onlyonce_core::State::Completed(completed) if completed.chunks > 0);
    assert!(
        write.last_chunk.is_some() == wants,
        "I3: the last chunk of {} and its completed record are one write",
        write.record.id
    );
}
