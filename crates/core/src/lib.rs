//! The protocol of Onlyonce, as pure and synchronous code.
//!
//! Nothing here does I/O, reads a clock, draws a random number or awaits: time, identities and
//! randomness come in as arguments, and what should happen comes out as a value. Everything else
//! (engine, stores, HTTP) is a shell around it.
//!
//! Read [`decision`] first: it is the heart, one function that says whether an attempt executes,
//! replays, joins or is refused. Then [`transition`], the only code that makes a new record out of
//! an old one. [`record`] holds the types that both speak of.
//!
//! ```
//! use onlyonce_core::{decide, Decision, Epoch, Fingerprint, Held, Policy};
//!
//! let presented = Fingerprint::from_bytes([7; 32]);
//! let decision = decide(Held::Absent, &presented, &Policy::default());
//! assert_eq!(decision, Decision::Execute { after: Epoch::ZERO });
//! ```

pub mod books;
pub mod decision;
pub mod identity;
pub mod key;
pub mod metered;
mod numbered;
pub mod planted;
pub mod record;
pub mod time;
pub mod trace;
pub mod transition;

pub use books::{Account, Count, Entry, Posting, Sums};
pub use decision::{Concurrent, Decision, Held, OnUnknown, Policy, Refusal, decide, view};
pub use identity::{Address, Epoch, Fence, Fingerprint, OperationId, OwnerId, RecordingId, Scope};
pub use key::{Key, KeyError};
pub use metered::{Basis, Cost, Metered, Source, Unit, Usage, Usd};
pub use record::{
    Attempt, Completed, Got, Head, HeaderBlock, Record, ReleaseReason, RequestLine, Ruling, State,
    StateName, UnknownReason,
};
pub use time::Timestamp;
pub use trace::{OperationSpan, SpanId, TraceId};
pub use transition::{NotLawful, Resolution, Standing};
