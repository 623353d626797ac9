//! The harness of the integration tests: the real binary, raw sockets, scripted upstreams.
//!
//! Nothing here knows how Onlyonce is built. A test starts the binary as a user would
//! ([`Gateway`]), puts an upstream that it scripts byte by byte behind it ([`Upstream`]) and
//! talks to it over a bare socket ([`Client`]), so that what is checked is what goes over the
//! wire. Everything is blocking and runs on plain threads; nothing waits by sleeping a guessed
//! time: there are [`Signal`]s, and [`eventually`] for conditions that only a poll can see.
//!
//! The harness panics where a test should fail: that is how a test fails.

mod between;
mod client;
mod compared;
mod control;
mod examples;
mod gateway;
mod message;
mod mount;
mod otlp;
mod pgbouncer;
mod places;
mod postgres;
mod program;
mod receiver;
mod redis;
mod signal;
mod sources;
mod staying;
mod upstream;
mod wire;

pub use between::Between;
pub use client::{Client, End, Request, Response};
pub use compared::scenarios_are_as_published;
pub use control::Control;
pub use examples::{ServingExample, example};
pub use gateway::{Gateway, Run, Setup, run_to_exit};
pub use message::{Head, parse_head};
pub use mount::{read_only, small_disk};
pub use otlp::Collector;
pub use pgbouncer::Pgbouncer;
pub use places::Places;
pub use postgres::Postgres;
pub use program::make_program;
pub use receiver::{Api, Manner, Receiver};
pub use redis::{RedisCluster, RedisPair, RedisServer, SYNCED};
pub use signal::{Signal, eventually, eventually_within};
pub use sources::{Test, tests_of};
pub use staying::Staying;
pub use upstream::{Exchange, Refusing, Seen, Upstream};
pub use wire::Wire;

use std::time::Duration;

/// How long anything in a test may take before it counts as stuck.
pub const PATIENCE: Duration = Duration::from_secs(15);
