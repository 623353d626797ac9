//! A tower layer that makes a retried request run once.
//!
//! A client names one logical action with an `Idempotency-Key`. The first attempt runs your handler;
//! every later attempt with that key gets its answer, byte for byte, whether it is finished (replay) or
//! still running (join). Where nobody can say whether the handler ran, Onlyonce says so and never
//! guesses. It is the contract of the gateway, word for word, for any tower service of HTTP requests:
//! axum, tonic, or hyper.
//!
//! Two lines: one [`Once`] for the process, and one [`OnceLayer`] around what has to run once.
//!
//! ```
//! # #[cfg(feature = "axum")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use axum::{Json, Router, routing::post};
//! use onlyonce_tower::{Once, OnceLayer, Operation, Rules};
//!
//! async fn charge(operation: Operation) -> Json<String> {
//!     Json(format!("charged by {}", operation.id()))
//! }
//!
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path().join("once");
//! let once = Once::embedded(&folder)?;
//! let app: Router = Router::new()
//!     .route("/charges", post(charge))
//!     .layer(OnceLayer::new(once.clone(), Rules::default().require_key()));
//! # once.shutdown(std::time::Duration::ZERO).await?;
//! # Ok(()) }
//! # #[cfg(feature = "axum")]
//! # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
//! ```
//!
//! - The first caller is only the first reader: that it leaves stops nothing, and its retry gets the
//!   whole answer. Bodies stream, trailers included; only the end waits until the record is durable.
//! - Any whole response completes the operation. [`DidNotRun`] around a response says that nothing ran,
//!   so that the key is free again. A handler that panics, fails or breaks its body off leaves the
//!   outcome unknown, and nothing runs again before somebody has looked it up: see [`Outcome`].
//! - Callers are told apart by the credential that they send, or as [`Rules::tenant`] says.
//! - [`Rules`] are those of one layer, so a route can have its own.
//!
//! - A handler may be made of [steps](Operation::step), which run once each whatever becomes of the rest:
//!   an operation whose process died [continues](Rules::resume) after the last one that is done, when its
//!   caller comes again, or by a [`Completer`].
//! - [`Once::run`] does the same for functions, without HTTP: jobs, messages, tools.
//! - Where nobody can say whether something ran, and somebody has found out: [`Once::complete`], [`Once::release`].
//!
//! Where to look: `service` tells which way a request goes, `keyed` asks the engine, `execute` runs the
//! handler, `step` and `call` are what is done once without HTTP, and [`shell`] is what the gateway has
//! too.

mod body;
mod call;
mod caught;
mod completer;
mod doing;
mod execute;
#[cfg(feature = "axum")]
mod extract;
mod failure;
mod input;
mod kept;
mod keyed;
mod layer;
mod once;
mod operation;
mod outcome;
mod rules;
mod service;
mod settle;
#[doc(hidden)]
pub mod shell;
mod step;

pub use body::{RequestBody, ResponseBody};
pub use call::{Call, RunError};
pub use completer::Completer;
#[cfg(feature = "axum")]
pub use extract::NoOperation;
pub use failure::Failure;
pub use layer::OnceLayer;
pub use once::Once;
pub use operation::Operation;
pub use outcome::{DidNotRun, NotSent, Outcome};
pub use rules::Rules;
pub use service::{OnceFuture, OnceService};
pub use step::{Step, StepError};

pub use onlyonce_core::{Key, KeyError, Metered, OperationId};
pub use onlyonce_engine::{Engine, ResolveError, Settings, Trouble};
pub use onlyonce_http::canonical_json::Pointer;
pub use onlyonce_store::{EmbeddedStore, MemoryStore, Store, StoreError};

/// What an operation used and cost: for [`Operation::meter`] and [`Step::metering`].
pub mod metered {
    pub use onlyonce_core::{Basis, Cost, Metered, Source, Unit, Usage, Usd};
}

/// Operations as the store has them: what [`Once::engine`] lists and shows.
pub mod operations {
    pub use onlyonce_core::{
        Attempt, Completed, Got, Head, HeaderBlock, Record, ReleaseReason, Scope, State, StateName,
        Timestamp, UnknownReason,
    };
    pub use onlyonce_engine::{Operation, Purge};
    pub use onlyonce_store::{Page, Query, Stored};
}

/// Records in a folder of this process: for [`Once::new`], where [`Once::embedded`] is not enough.
pub mod embedded {
    pub use onlyonce_store::embedded::{EmbeddedStore, EncryptionKeys, OpenError, Options};
}

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
