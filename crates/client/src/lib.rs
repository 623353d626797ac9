//! For callers of APIs that take idempotency keys: keys that survive a crash, and retries that behave.
//!
//! A caller names what is to happen once, an [`Action`]. The client makes one key for it, keeps it before
//! the first byte is sent, and sends the same key with every attempt, of this process or of the next one.
//!
//! ```no_run
//! use bytes::Bytes;
//! use http::Request;
//! use http_body_util::Full;
//! use hyper_util::{client::legacy::Client, rt::TokioExecutor};
//! use onlyonce_client::{Action, KeyFolder, OnceClient};
//! use tower::{Layer, ServiceExt};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let keys = KeyFolder::open("/var/lib/myapp/keys")?;
//! let client = OnceClient::builder(keys).build();
//! let http = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
//! let http = client.layer().layer(http);
//!
//! let mut request = Request::post("http://127.0.0.1:8787/v1/charges").body(Full::from("amount=4200"))?;
//! request.extensions_mut().insert(Action::new("order-17/charge")?);
//! let response = http.oneshot(request).await?;
//! # Ok(()) }
//! ```
//!
//! # What holds
//!
//! - The key of an action is durable before the first byte is sent, and no process that shares the
//!   [`KeyStore`] sends another one, unless the action is forgotten.
//! - An action that is used for another request is refused before anything is sent.
//! - Nothing is sent when the server may have forgotten the key: after `Onlyonce-Expires`, or
//!   [`Server::window`] after the key was made, less a minute.
//! - Nothing is tried again after the server said that the outcome is unknown, or not to.
//! - All attempts and waits of a call fit into one deadline, and all calls of a client share one budget
//!   of retries.
//! - Every [`Error`] says what happened, what it means for the caller's money, and what to do.
//!
//! # Where to read
//!
//! `call.rs` is the order of things. [`Policy::next`] decides, without a clock and without I/O, by the
//! rules of a [`Server`], which are data. [`KeyFolder`] keeps keys in a folder (on Unix).
//!
//! A call that is dropped is like one that was killed: its key is kept, and to call again goes on with it.

mod action;
mod attempt;
mod body;
mod budget;
mod call;
mod client;
mod error;
mod fingerprint;
#[cfg(unix)]
mod folder;
mod keys;
mod layer;
#[cfg(feature = "reqwest")]
mod middleware;
mod policy;
mod report;
mod server;
mod time;
mod window;

pub use action::{Action, ActionError};
pub use attempt::{Answer, Got, Problem};
pub use body::AnswerBody;
pub use budget::Budget;
pub use client::{Builder, OnceClient};
pub use error::{BoxError, Error};
#[cfg(unix)]
pub use folder::{FolderError, KeyFolder};
pub use keys::{Entry, KeyStore, Note, Said, Taken};
pub use layer::{ClientLayer, ClientService, NotConnected};
#[cfg(feature = "reqwest")]
pub use middleware::ClientMiddleware;
pub use onlyonce_core::{Fingerprint, Key};
pub use policy::{History, Next, Policy, Stop};
pub use report::{Attempt, Report};
pub use server::Server;
pub use time::{Clock, SystemClock};
