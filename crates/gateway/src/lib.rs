//! The gateway: a reverse proxy that makes a retried request run once.
//!
//! [`config`] says what is served, [`shared`] is what its parts have in common, `start` puts them
//! together: the proxy's workers, the control listener, the engine over an opened store.

mod any_store;
mod call;
pub mod cli;
pub mod config;
mod control;
mod control_client;
mod copy;
mod demo;
mod doctor;
mod exec;
mod failure;
mod http_client;
mod keys;
mod ledger_command;
mod listen;
pub mod metrics;
mod observe;
pub mod open;
mod presets;
pub mod proxy;
mod room;
pub mod shared;
mod sinks;
mod start;
mod store_command;
mod telemetry;
mod tools;
mod verify;

pub use failure::Failure;
