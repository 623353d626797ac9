//! The operation that a handler executes.

use std::fmt;
use std::sync::Arc;

use onlyonce_core::{Key, Metered, OperationId, Scope};
use onlyonce_http::{HashKeys, key_for};
use parking_lot::Mutex;

/// The operation that a handler executes. It is in the extensions of every keyed request, and with the
/// feature `axum` a handler takes it as an argument.
///
/// ```
/// # #[cfg(feature = "axum")] mod example {
/// use onlyonce_tower::Operation;
///
/// async fn charge(operation: Operation) -> String {
///     // The same in every execution of this operation, so the bank runs it once.
///     let key_at_the_bank = operation.key_for("charge");
///     format!("{} is charged under {key_at_the_bank}", operation.id())
/// }
/// # }
/// ```
///
/// A handler that takes an `Operation` refuses requests without a key (400 `key-missing`); one that
/// takes an `Option<Operation>` serves them.
#[derive(Clone)]
pub struct Operation(Arc<Inner>);

struct Inner {
    id: OperationId,
    attempt: u32,
    scope: Scope,
    key: Key,
    hash_keys: HashKeys,
    metered: Mutex<Option<Metered>>,
}

impl Operation {
    pub(crate) fn new(
        id: OperationId,
        attempt: u32,
        (scope, key): (Scope, Key),
        hash_keys: &HashKeys,
    ) -> Self {
        Self(Arc::new(Inner {
            id,
            attempt,
            scope,
            key,
            hash_keys: hash_keys.clone(),
            metered: Mutex::new(None),
        }))
    }

    /// Its id, as in `Onlyonce-Operation`.
    pub fn id(&self) -> OperationId {
        self.0.id
    }

    /// The key that the caller sent.
    pub fn key(&self) -> &Key {
        &self.0.key
    }

    /// The number of the attempt that is executed, from 1.
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// Who the caller is.
    pub fn tenant(&self) -> &str {
        &self.0.scope.tenant
    }

    /// The key to send along when the operation does its part `name` elsewhere. It follows from the
    /// caller, its key and `name`, so every execution sends the same one, and a service that honours keys
    /// does that part once.
    pub fn key_for(&self, name: &str) -> Key {
        key_for(&self.0.hash_keys, &self.0.scope, &self.0.key, name)
    }

    /// Says what the execution used and cost: it goes into the record with the outcome, and into the
    /// books. The last word before the end of the answer counts.
    pub fn meter(&self, metered: Metered) {
        *self.0.metered.lock() = Some(metered);
    }

    pub(crate) fn metered(&self) -> Option<Metered> {
        self.0.metered.lock().take()
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation")
            .field("id", &self.0.id)
            .field("attempt", &self.0.attempt)
            .finish_non_exhaustive()
    }
}
