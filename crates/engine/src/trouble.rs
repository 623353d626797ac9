//! What can go wrong, with the facts in it.

use onlyonce_core::{Refusal, StateName, UnknownReason};
use onlyonce_store::StoreError;

use crate::Ticket;

/// Why an attempt could not even be decided about. Nothing was sent upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The store does not answer or takes no writes (I12).
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The store is full.
    #[error("the store is full: {0}")]
    Full(String),
    /// The store did not say whether it wrote the claim, and reading back did not tell either
    /// (I14).
    #[error("the store did not say whether it wrote the claim: {0}")]
    InDoubt(String),
    /// A configured limit is reached; carries its name as it stands in the configuration.
    #[error("the limit {0} is reached")]
    OverLimit(&'static str),
    /// The process is stopping and claims nothing any more.
    #[error("the process is stopping")]
    ShuttingDown,
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(what) => Self::Unavailable(what),
            StoreError::Full(what) => Self::Full(what),
            StoreError::OverLimit(name) => Self::OverLimit(name),
            StoreError::InDoubt(what) => Self::InDoubt(what),
            StoreError::Corrupt(what) => Self::Unavailable(what),
            // Somebody else has written in the meantime: whoever asks again finds what.
            StoreError::Fenced => Self::Unavailable(error.to_string()),
        }
    }
}

/// An attempt that is not served, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// Which operation it was an attempt of. `None` where telling would reveal something of
    /// another request (I6), or where nothing is known.
    pub ticket: Option<Ticket>,
}

/// Why bytes did not enter a recording.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The response is longer than a limit allows. What follows is `lose(OverLimit)`, or
    /// `release_broken` where the head was a released one.
    #[error("the response is longer than {limit} bytes")]
    OverLimit {
        /// The limit, in bytes.
        limit: u64,
    },
    /// Somebody else has written the record since, or the process is stopping: whatever is done
    /// with this execution changes nothing any more (I9).
    #[error("the operation is not this execution's any more")]
    Fenced,
    /// The store did not take the bytes within the settle time-out. What follows is
    /// `lose(NotRecorded)`.
    #[error("the response could not be recorded: {0}")]
    NotRecorded(String),
}

/// Why the outcome that an owner wanted to write does not stand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsettled {
    /// Somebody else has written the record since (I9). Nothing was changed; readers are broken.
    #[error("fenced: the operation is not this execution's any more")]
    Fenced,
    /// The store did not take it within the settle time-out. Readers are broken; the record
    /// becomes unknown (or released, where that was the outcome) as soon as the store works again.
    #[error("the outcome could not be recorded: {0}")]
    NotRecorded(String),
    /// It was not a whole response (no head, or another length than it declared), or a release after a
    /// head that counts as executed. The operation is unknown now (I5, I10).
    #[error("the response was not whole")]
    NotWhole,
}

/// A body that broke off. It must never be shown as a clean end (I5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the recording broke off: {0}")]
pub struct Broken(pub UnknownReason);

/// Why an operator's word was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// No such operation.
    #[error("there is no such operation")]
    NotFound,
    /// Only an unknown operation can be resolved.
    #[error("the operation is {0}, and only an unknown one can be resolved")]
    NotUnknown(StateName),
    /// Somebody else wrote the record at the same moment; look at it again.
    #[error("the operation changed at the same moment")]
    Changed,
    /// The body, or a header, is longer than a limit.
    #[error("the body or a header is longer than {limit} bytes")]
    OverLimit {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The store did not do it.
    #[error(transparent)]
    Trouble(#[from] Trouble),
}
