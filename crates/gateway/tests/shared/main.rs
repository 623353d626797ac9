//! Several gateways on one store, on a real PostgreSQL and a real Redis. The upstream counts: what
//! several gateways were asked for once runs once.

// In a test, an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod copy;
mod failover;
mod keys;
mod load;
mod mistakes;
mod nodes;
mod one_truth;
mod outages;
mod pooler;
mod servers;
mod versions;
mod work;

use std::time::Duration;

use onlyonce_testkit::{Gateway, Request, Setup, Signal, Upstream};
use servers::Server;

/// The binary under test.
const BIN: &str = env!("CARGO_BIN_EXE_onlyonce");

/// An older binary, where `ONLYONCE_OLD_BINARY` names one; else the binary under test.
fn old_binary() -> String {
    std::env::var("ONLYONCE_OLD_BINARY").unwrap_or_else(|_| BIN.to_owned())
}

/// How long a claim of these gateways is believed.
const LEASE: Duration = Duration::from_secs(2);
/// What a passed lease may take to be noticed, on top of it: a round of upkeep, which comes at least every
/// second, and a busy machine.
const SLACK: Duration = Duration::from_secs(3);

/// A keyed `POST` with a body.
fn post(key: &str) -> Request {
    Request::post("/x").key(key).body("b")
}

/// An upstream that sends half of its answer, and the rest once told.
fn held() -> (Upstream, Signal) {
    let go = Signal::new();
    let upstream = {
        let go = go.clone();
        Upstream::scripted(move |exchange| {
            exchange.read_body();
            exchange.start_chunked(200, &[("content-type", "text/plain")]);
            exchange.chunk(format!("execution {} begun", exchange.number));
            go.wait();
            exchange.chunk(", and ended");
            exchange.end_chunks();
        })
    };
    (upstream, go)
}

/// A gateway before `upstream`, on the store of `server`.
fn setup(upstream: &Upstream, server: &impl Server) -> Setup {
    let lease = LEASE.as_secs();
    Setup::new(BIN, &upstream.url())
        .store(&format!("url = \"{}\"\nlease = \"{lease}s\"", server.url()))
}

/// Two of them.
fn two_gateways(upstream: &Upstream, server: &impl Server) -> (Gateway, Gateway) {
    let setup = setup(upstream, server);
    (setup.clone().start(), setup.start())
}

/// Runs a test on a server of its own.
fn alone<S: Server>(test: fn(&mut S)) {
    test(&mut S::start());
}

/// Makes a test of every function, for each kind of server: `run` gives it what it takes.
macro_rules! on_every_server {
    ($run:ident: $($test:ident)*) => {
        mod postgres {
            $(#[test] fn $test() {
                super::$run::<crate::servers::OnPostgres>(super::$test);
            })*
        }
        mod redis {
            $(#[test] fn $test() {
                super::$run::<crate::servers::OnRedis>(super::$test);
            })*
        }
    };
}
pub(crate) use on_every_server;
