//! The sandbox over real sockets, by clients that know nothing but bytes.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod endpoints;
mod faults;
mod ledger;
mod wire;
