//! The engine over the store in memory, on a clock that the tests move.

#![allow(missing_docs)]

mod claims;
mod elsewhere;
mod joins;
mod late;
mod operator;
mod outcomes;
mod recordings;
mod shutdown;
mod two_gateways;
mod upkeep;
mod world;
