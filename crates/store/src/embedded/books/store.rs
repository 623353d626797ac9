//! The books of the embedded store as [`Books`].

use onlyonce_core::{Entry, OperationId, Posting, Timestamp};

use crate::{
    Books, EmbeddedStore, StoreError, Swept,
    books::{
        Advance, Booked, Cell, DeadLetter, EntryPage, EntryQuery, Held, Hold, Position, SumsQuery,
    },
    embedded::Inner,
};

impl Books for EmbeddedStore {
    async fn book(&self) -> Result<Booked, StoreError> {
        self.blocking(Inner::book).await
    }

    async fn post(&self, postings: Vec<Posting>) -> Result<(), StoreError> {
        self.inner.takes_writes()?;
        self.inner.ledger.post(postings);
        Ok(())
    }

    async fn feed(
        &self,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Vec<(Position, Entry)>, StoreError> {
        self.blocking(move |inner| inner.ledger.feed(after, limit, inner.sealer.as_ref()))
            .await
    }

    async fn entries(&self, query: EntryQuery) -> Result<EntryPage, StoreError> {
        self.blocking(move |inner| inner.ledger.entries(&query, inner.sealer.as_ref()))
            .await
    }

    async fn sums(&self, query: SumsQuery) -> Result<Vec<Cell>, StoreError> {
        self.blocking(move |inner| Ok(inner.ledger.sums(&query)))
            .await
    }

    async fn hold(&self, hold: Hold) -> Result<Option<Held>, StoreError> {
        self.blocking(move |inner| {
            inner.takes_writes()?;
            let now = inner.clock.now();
            inner.ledger.hold(&hold, now, inner.sealer.as_ref())
        })
        .await
    }

    async fn advance(&self, step: Advance) -> Result<bool, StoreError> {
        self.blocking(move |inner| {
            inner.takes_writes()?;
            let now = inner.clock.now();
            inner.ledger.advance(step, now, inner.sealer.as_ref())
        })
        .await
    }

    async fn dead(
        &self,
        sink: &str,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let sink = sink.to_owned();
        self.blocking(move |inner| Ok(inner.ledger.dead(&sink, after, limit)))
            .await
    }

    async fn forget_dead(&self, sink: &str, ids: &[OperationId]) -> Result<u64, StoreError> {
        let (sink, ids) = (sink.to_owned(), ids.to_owned());
        self.blocking(move |inner| {
            inner.takes_writes()?;
            inner.ledger.forget_dead(&sink, &ids, inner.sealer.as_ref())
        })
        .await
    }

    async fn trim(&self, before: Timestamp) -> Result<Swept, StoreError> {
        self.blocking(move |inner| {
            inner.takes_writes()?;
            inner.ledger.trim(before, inner.sealer.as_ref())
        })
        .await
    }
}

impl Inner {
    /// Refuses once the log is closed, or broken: then nothing is written beside it either (I12).
    fn takes_writes(&self) -> Result<(), StoreError> {
        match self.log.gate.broken() {
            Some(why) => Err(StoreError::Unavailable(why.to_string())),
            None => Ok(()),
        }
    }

    /// Books what waits, or the first tens of thousands of entries of it. Blocks.
    pub fn book(&self) -> Result<Booked, StoreError> {
        self.takes_writes()?;
        let sealed = self.log.sealed_up_to();
        self.ledger.book(self.sealer.as_ref(), sealed)
    }
}
