//! The store that the configuration names, whichever it is.

use std::time::Duration;

use bytes::Bytes;
use onlyonce_core::{
    Address, Attempt, Entry, Fence, OperationId, OwnerId, Posting, Record, RecordingId, Timestamp,
};
use onlyonce_store::{
    AttemptNote, Books, Cached, EmbeddedStore, Mark, MemoryStore, Page, PostgresStore, Query,
    RedisStore, Seen, Shown, Status, Store, StoreError, Stored, Swap, Swept, Walked, Write,
    books::{
        Advance, Booked, Cell, DeadLetter, EntryPage, EntryQuery, Held, Hold, Position, SumsQuery,
    },
};

/// One of the stores that there are.
pub(crate) enum AnyStore {
    /// Gone with the process.
    Memory(Box<MemoryStore>),
    /// Our own log in a folder.
    Embedded(EmbeddedStore),
    /// Shared, on PostgreSQL, with what is completed cached.
    Postgres(Cached<PostgresStore>),
    /// Shared, on Redis or Valkey, with what is completed cached.
    Redis(Cached<RedisStore>),
}

/// What every store answers at once.
macro_rules! ask {
    ($any:expr, $store:ident => $answer:expr) => {
        match $any {
            AnyStore::Memory($store) => $answer,
            AnyStore::Embedded($store) => $answer,
            AnyStore::Postgres($store) => $answer,
            AnyStore::Redis($store) => $answer,
        }
    };
}

/// What a store answers in time. Large futures are boxed, so that they cost those who do not await
/// them nothing; a [`Cached`] one boxes what it asks of the store behind it.
macro_rules! wait {
    ($any:expr, $store:ident => $answer:expr) => {
        match $any {
            AnyStore::Memory($store) => Box::pin($answer).await,
            AnyStore::Embedded($store) => $answer.await,
            AnyStore::Postgres($store) => $answer.await,
            AnyStore::Redis($store) => $answer.await,
        }
    };
}

impl Store for AnyStore {
    fn now(&self) -> Timestamp {
        ask!(self, store => store.now())
    }

    fn secret(&self) -> &[u8; 32] {
        ask!(self, store => store.secret())
    }

    async fn load(&self, address: Address) -> Result<Option<Stored>, StoreError> {
        wait!(self, store => store.load(address))
    }

    fn claim_first(&self, address: Address) -> bool {
        ask!(self, store => store.claim_first(address))
    }

    fn may_forget(&self) -> bool {
        ask!(self, store => store.may_forget())
    }

    async fn compare_and_set(
        &self,
        address: Address,
        expected: Option<Fence>,
        write: Write,
    ) -> Result<Swap, StoreError> {
        wait!(self, store => store.compare_and_set(address, expected, write))
    }

    async fn append(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        wait!(self, store => store.append(address, recording, chunk, bytes))
    }

    async fn read(
        &self,
        address: Address,
        recording: RecordingId,
        chunk: u32,
    ) -> Result<Bytes, StoreError> {
        wait!(self, store => store.read(address, recording, chunk))
    }

    async fn note_attempt(
        &self,
        address: Address,
        id: OperationId,
        note: AttemptNote,
    ) -> Result<u32, StoreError> {
        wait!(self, store => store.note_attempt(address, id, note))
    }

    async fn attempts(
        &self,
        address: Address,
        id: OperationId,
    ) -> Result<Vec<Attempt>, StoreError> {
        wait!(self, store => store.attempts(address, id))
    }

    async fn find(&self, id: OperationId) -> Result<Option<Address>, StoreError> {
        wait!(self, store => store.find(id))
    }

    async fn list(&self, query: Query) -> Result<Page, StoreError> {
        wait!(self, store => store.list(query))
    }

    async fn remove(&self, address: Address, fence: Fence) -> Result<bool, StoreError> {
        wait!(self, store => store.remove(address, fence))
    }

    async fn sweep(&self) -> Result<Swept, StoreError> {
        wait!(self, store => store.sweep())
    }

    async fn overdue(&self, limit: usize) -> Result<Vec<(Address, Record)>, StoreError> {
        wait!(self, store => store.overdue(limit))
    }

    async fn follow(
        &self,
        address: Address,
        recording: RecordingId,
        owner: OwnerId,
        seen: Seen,
        at_most: Duration,
    ) -> Result<Option<Shown>, StoreError> {
        wait!(self, store => store.follow(address, recording, owner, seen, at_most))
    }

    async fn followed(&self, owner: OwnerId) -> Result<Vec<Address>, StoreError> {
        wait!(self, store => store.followed(owner))
    }

    async fn show(
        &self,
        address: Address,
        recording: RecordingId,
        shown: Shown,
    ) -> Result<(), StoreError> {
        wait!(self, store => store.show(address, recording, shown))
    }

    async fn mark(&self) -> Result<Option<Mark>, StoreError> {
        wait!(self, store => store.mark())
    }

    async fn set_mark(&self, expected: Option<Mark>, to: Option<Mark>) -> Result<bool, StoreError> {
        wait!(self, store => store.set_mark(expected, to))
    }

    async fn walk(&self, after: Option<Walked>, limit: usize) -> Result<Vec<Walked>, StoreError> {
        wait!(self, store => store.walk(after, limit))
    }

    fn status(&self) -> Status {
        ask!(self, store => store.status())
    }

    async fn close(&self) -> Result<(), StoreError> {
        wait!(self, store => store.close())
    }
}

impl Books for AnyStore {
    async fn book(&self) -> Result<Booked, StoreError> {
        wait!(self, store => store.book())
    }

    async fn post(&self, postings: Vec<Posting>) -> Result<(), StoreError> {
        wait!(self, store => store.post(postings))
    }

    async fn feed(
        &self,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<(Position, Entry)>, StoreError> {
        wait!(self, store => store.feed(after, limit))
    }

    async fn entries(&self, query: EntryQuery) -> Result<EntryPage, StoreError> {
        wait!(self, store => store.entries(query))
    }

    async fn sums(&self, query: SumsQuery) -> Result<Vec<Cell>, StoreError> {
        wait!(self, store => store.sums(query))
    }

    async fn hold(&self, hold: Hold) -> Result<Option<Held>, StoreError> {
        wait!(self, store => store.hold(hold))
    }

    async fn advance(&self, step: Advance) -> Result<bool, StoreError> {
        wait!(self, store => store.advance(step))
    }

    async fn dead(
        &self,
        sink: &str,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        wait!(self, store => store.dead(sink, after, limit))
    }

    async fn forget_dead(&self, sink: &str, ids: &[OperationId]) -> Result<u64, StoreError> {
        wait!(self, store => store.forget_dead(sink, ids))
    }

    async fn trim(&self, before: Timestamp) -> Result<Swept, StoreError> {
        wait!(self, store => store.trim(before))
    }
}
