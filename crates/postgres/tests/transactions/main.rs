//! Operations in transactions, on real servers and with both drivers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bank;
mod child;
mod contract;
mod crashes;
mod drivers;
mod example;
mod line;
mod shared;
