//! The client: keys that survive, decisions, attempts. See each file.

// In a test, an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod calls;
mod crash;
mod examples;
mod folder;
mod policy;
#[cfg(feature = "reqwest")]
mod reqwest;
mod sockets;
mod support;
