//! The books.

use onlyonce_core::{Entry, OperationId, Posting, Timestamp};

use super::PostgresStore;
use crate::{
    Books, StoreError, Swept,
    books::{
        Advance, Booked, Cell, DeadLetter, EntryPage, EntryQuery, Held, Hold, Position, SumsQuery,
    },
};

impl Books for PostgresStore {
    async fn book(&self) -> Result<Booked, StoreError> {
        todo!("books")
    }

    async fn post(&self, _postings: Vec<Posting>) -> Result<(), StoreError> {
        todo!("books")
    }

    async fn feed(
        &self,
        _after: Option<Position>,
        _limit: usize,
    ) -> Result<Vec<(Position, Entry)>, StoreError> {
        todo!("books")
    }

    async fn entries(&self, _query: EntryQuery) -> Result<EntryPage, StoreError> {
        todo!("books")
    }

    async fn sums(&self, _query: SumsQuery) -> Result<Vec<Cell>, StoreError> {
        todo!("books")
    }

    async fn hold(&self, _hold: Hold) -> Result<Option<Held>, StoreError> {
        todo!("books")
    }

    async fn advance(&self, _step: Advance) -> Result<bool, StoreError> {
        todo!("books")
    }

    async fn dead(
        &self,
        _sink: &str,
        _after: Option<OperationId>,
        _limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        todo!("books")
    }

    async fn forget_dead(&self, _sink: &str, _ids: &[OperationId]) -> Result<u64, StoreError> {
        todo!("books")
    }

    async fn trim(&self, _before: Timestamp) -> Result<Swept, StoreError> {
        todo!("books")
    }
}
