//! The client: keys that survive, decisions, attempts. See each file.

mod calls;
mod crash;
mod folder;
mod policy;
#[cfg(feature = "reqwest")]
mod reqwest;
mod sockets;
mod support;
