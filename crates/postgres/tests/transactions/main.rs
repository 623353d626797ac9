//! Operations in transactions, on real servers and with both drivers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bank;
mod contract;
mod drivers;
mod line;
