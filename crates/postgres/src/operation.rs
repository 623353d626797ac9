//! An operation that is executed in a transaction.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_core::{Address, Fence, Key, Metered, OperationId, Record};
use onlyonce_http::key_for;
use onlyonce_http::work::result_head;
use onlyonce_store::postgres::within::{Ended, Transaction};
use onlyonce_store::{MAX_CHUNK, Store, StoreError};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::transactions::Shared;
use crate::{Connection, Error};

/// The longest result, in bytes of JSON.
pub const MAX_RESULT: usize = MAX_CHUNK;

const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// An operation that is executed in the transaction in which it was begun.
///
/// Nobody else sees it before that is committed. Rolled back, it has never been: the key is free. Committed
/// without [`Operation::complete`], it is in flight until its lease of 30 seconds has passed, and then unknown:
/// somebody has to look whether it ran.
#[must_use = "an operation that is committed and not completed becomes unknown"]
pub struct Operation {
    shared: Arc<Shared>,
    address: Address,
    claim: Box<Record>,
    transaction: Transaction,
    metered: Option<Metered>,
}

impl Operation {
    pub(crate) fn new(
        shared: Arc<Shared>,
        address: Address,
        claim: Record,
        transaction: Transaction,
    ) -> Self {
        Self {
            shared,
            address,
            claim: Box::new(claim),
            transaction,
            metered: None,
        }
    }

    /// Its id.
    pub fn id(&self) -> OperationId {
        self.claim.id
    }

    /// The key that it was begun with.
    pub fn key(&self) -> &Key {
        &self.claim.key
    }

    /// Whose it is.
    pub fn tenant(&self) -> &str {
        &self.claim.scope.tenant
    }

    /// The key to send along when the operation does its part `name` elsewhere. It follows from the
    /// tenant, the key and `name`, so every execution sends the same one, and a service that honours keys
    /// does that part once, also where this transaction is rolled back and tried again.
    ///
    /// The next operation under this key, once the window of this one has passed, sends the same one: where
    /// the service remembers for longer than that, it gives it the old answer. Do not use a key again for
    /// something new, or let the window be as long as the service's memory.
    pub fn key_for(&self, name: &str) -> Key {
        let (scope, key) = (&self.claim.scope, &self.claim.key);
        key_for(&self.shared.hash_keys, scope, key, name)
    }

    /// Says what the execution used and cost: it goes into the record with the result, and into the books.
    pub fn meter(&mut self, metered: Metered) {
        self.metered = Some(metered);
    }

    /// Writes the result, in the same transaction: the last statement before its commit. From then on it
    /// answers whoever comes with the key.
    ///
    /// # Errors
    ///
    /// [`Error`]; the transaction is to be rolled back then.
    pub async fn complete<C, T>(self, connection: &mut C, result: &T) -> Result<Completed, Error>
    where
        C: Connection,
        T: Serialize + ?Sized,
    {
        let json = serde_json::to_vec(result).map_err(Error::Result)?;
        if json.len() > MAX_RESULT {
            return Err(Error::TooLarge { len: json.len() });
        }
        let Self {
            shared,
            address,
            claim,
            transaction,
            metered,
        } = self;
        let fenced = || Error::Fenced(claim.id);
        let (fence, window) = (claim.fence(), shared.settings.window);
        let write = shared
            .engine
            .draft_completion(&claim, result_head(), Bytes::from(json), window, metered)
            .map_err(|_| fenced())?;
        let completed = write.record.fence();
        let place = shared.next_place();
        let statement = shared.store().change_within(address, fence, &write, place);
        let statement = statement.await?;
        let rows = connection.run(&statement).await.map_err(Error::of_ours)?;
        match shared.store().changed_within(&write, &rows)? {
            true => Ok(Completed {
                address,
                fence: completed,
                transaction,
                shared,
            }),
            false => Err(fenced()),
        }
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation")
            .field("id", &self.claim.id)
            .field("name", &self.claim.request.path)
            .finish_non_exhaustive()
    }
}

/// An operation whose result is written in a transaction that is not committed yet.
pub struct Completed {
    shared: Arc<Shared>,
    address: Address,
    fence: Fence,
    transaction: Transaction,
}

impl Completed {
    /// The operation.
    pub fn id(&self) -> OperationId {
        self.fence.id
    }

    /// Whether it was committed, durably: for whoever sent the commit and was not told (I14). Asks the server
    /// on another connection, until the transaction has ended, but for no longer than
    /// [`Settings::lock_wait`](crate::Settings::lock_wait).
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the server does not say. To begin again with the same key tells, too.
    pub async fn is_committed(&self) -> Result<bool, StoreError> {
        let store = self.shared.store();
        let give_up_at = Instant::now() + self.shared.settings.lock_wait;
        let mut pause = PAUSE_MIN;
        let error = loop {
            let error = match store.ended(self.transaction).await {
                // Back to a savepoint, and the rest of the transaction was committed without it.
                Ok(Ended::Committed) => return self.stands().await,
                Ok(Ended::RolledBack) => return Ok(false),
                Ok(Ended::NotKnown) => StoreError::InDoubt("its transaction goes on".into()),
                Err(error) => error,
            };
            if Instant::now() + pause > give_up_at {
                break error;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        };
        Err(error)
    }

    /// Whether the record is there, expired or not.
    async fn stands(&self) -> Result<bool, StoreError> {
        let stored = self.shared.store().load(self.address).await?;
        Ok(stored.is_some_and(|stored| stored.record.fence() == self.fence))
    }
}

impl fmt::Debug for Completed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completed")
            .field("id", &self.fence.id)
            .finish_non_exhaustive()
    }
}
