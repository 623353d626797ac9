//! What a user can ask for: policies, protocols, the control listener, the command line. Each
//! against the real binary over sockets.

// In a test, an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod call;
mod caller;
mod commands;
mod control;
mod doctor;
mod encryption;
mod exec;
#[path = "../hostile/faults.rs"]
mod faults;
mod keys;
mod mcp;
mod mistakes;
mod observability;
mod observe;
mod openapi;
mod passing;
mod peers;
mod policies;
mod presets;
mod protocols;
mod routes;
mod sinks;
mod telemetry;
mod usage;
mod verify;
mod work;

use onlyonce_testkit::{Gateway, Request, Response, Setup, Signal, Upstream};

/// The binary under test.
const BIN: &str = env!("CARGO_BIN_EXE_onlyonce");

/// A gateway before this upstream, to be configured.
fn setup(upstream: &Upstream) -> Setup {
    Setup::new(BIN, &upstream.url())
}

/// A gateway before this upstream, all by default.
fn gateway(upstream: &Upstream) -> Gateway {
    Gateway::before(BIN, &upstream.url())
}

/// A keyed `POST` with a body.
fn post(path: &str, key: &str, body: &str) -> Request {
    Request::post(path).key(key).body(body)
}

/// Panics unless this is a first answer, whole and marked as executed.
#[track_caller]
fn expect_executed(response: &Response) {
    response.expect_status(200).expect_mark("executed");
}

/// Panics unless this replays that answer.
#[track_caller]
fn expect_replay(response: &Response, of: &Response) {
    response.expect_status(of.status()).expect_mark("replayed");
    assert_eq!(response.header("idempotent-replayed"), Some("true"));
    assert_eq!(response.body, of.body);
    assert_eq!(
        response.header("onlyonce-operation"),
        of.header("onlyonce-operation")
    );
}

/// An upstream that answers `begun`, waits for the signal, and ends with `and ended`.
fn held() -> (Upstream, Signal) {
    let go = Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.start_chunked(200, &[("Content-Type", "text/plain")]);
        x.chunk("begun, ");
        wait.wait();
        x.chunk("and ended");
        x.end_chunks();
    });
    (upstream, go)
}

/// Bytes that do not compress, the same each time (xorshift, Marsaglia 2003).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}
