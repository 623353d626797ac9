//! Why an operation was not run, or not to its end.

use onlyonce_core::key::KeyError;
use onlyonce_core::{OperationId, UnknownReason};
use onlyonce_store::StoreError;

use crate::DriverError;

const SERIALIZATION_FAILURE: &str = "40001";
const DEADLOCK_DETECTED: &str = "40P01";
const LOCK_NOT_AVAILABLE: &str = "55P03";
const CHECK_VIOLATION: &str = "23514";
const RAISED: &str = "P0001";

/// Why an operation was not run, or not to its end. Wherever it comes from, the transaction is to be rolled
/// back, and then nothing has happened; [`Error::InDoubt`] alone comes after a commit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The key is none.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The input cannot be written as JSON.
    #[error("the input cannot be written as JSON: {0}")]
    Input(serde_json::Error),
    /// The result cannot be written as JSON, or what is recorded is no such result.
    #[error("the result and its JSON do not agree: {0}")]
    Result(serde_json::Error),
    /// The result is too long to be recorded.
    #[error("the result has {len} bytes, and {max} are the most", max = crate::MAX_RESULT)]
    TooLarge {
        /// Its length, in bytes of JSON.
        len: usize,
    },
    /// The key was used with another input (I6).
    #[error("the key was used with another input")]
    KeyReused,
    /// The operation runs elsewhere: in another transaction that has not ended within
    /// [`Settings::lock_wait`](crate::Settings::lock_wait), or by a gateway, a layer or a worker. Try again a
    /// little later.
    #[error("the operation runs elsewhere; try again a little later")]
    InFlight,
    /// Nobody can say whether it ran: somebody has claimed it otherwise than here, or has committed a claim
    /// without its result. Somebody has to look, and settle it (`onlyonce keys`).
    #[error("nobody can say whether the operation ran: {0}")]
    Unknown(UnknownReason),
    /// Somebody else wrote the record since it was begun (I9). That cannot happen within one transaction.
    #[error("{0} was settled by somebody else since it was begun")]
    Fenced(OperationId),
    /// The server gave up this transaction for what went on beside it. Retry the transaction, from its
    /// beginning: nothing has happened.
    #[error("retry the transaction: {0}")]
    Retry(DriverError),
    /// Nobody said whether the transaction was committed. Call again with the same key: it says.
    #[error("nobody said whether {operation} was committed: {why}; call again with the same key")]
    InDoubt {
        /// The operation.
        operation: OperationId,
        /// What was said instead.
        why: DriverError,
    },
    /// The store did not do its part.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database, or the way there.
    #[error(transparent)]
    Driver(DriverError),
}

impl Error {
    /// An error of a driver, of a statement of the caller's own: [`Error::Retry`] where the server says that
    /// the transaction may be tried again.
    pub fn driver(error: impl Into<DriverError>) -> Self {
        let error = error.into();
        match error.code() {
            Some(SERIALIZATION_FAILURE | DEADLOCK_DETECTED) => Self::Retry(error),
            _ => Self::Driver(error),
        }
    }

    /// Of a statement that claims.
    pub(crate) fn of_a_claim(error: DriverError) -> Self {
        match error.code() {
            Some(LOCK_NOT_AVAILABLE) => Self::InFlight,
            // Its records move to another store, which refuses claims.
            Some(RAISED) => StoreError::Unavailable(error.to_string()).into(),
            _ => Self::of_ours(error),
        }
    }

    /// Of any statement of ours. A partition of the ledger may have been closed behind an old snapshot.
    pub(crate) fn of_ours(error: DriverError) -> Self {
        match error.code() {
            Some(CHECK_VIOLATION) => Self::Retry(error),
            _ => Self::driver(error),
        }
    }

    /// Whether to try again, from the beginning of the transaction and with the same key, may help.
    pub fn may_be_retried(&self) -> bool {
        match self {
            Self::InFlight | Self::Retry(_) | Self::InDoubt { .. } => true,
            Self::Store(error) => !matches!(error, StoreError::Corrupt(_)),
            // Nothing has happened.
            Self::Driver(error) => error.may_pass(),
            Self::Key(_)
            | Self::Input(_)
            | Self::Result(_)
            | Self::TooLarge { .. }
            | Self::KeyReused
            | Self::Unknown(_)
            | Self::Fenced(_) => false,
        }
    }
}
