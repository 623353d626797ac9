//! The hostile and unlucky cases, each against the real binary over raw sockets.
//!
//! A test's number is the number of the case; its name says what has to happen. Every test
//! checks what the client got (status, problem, marks) and what the upstream counted: "hits".

// In a test, an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

mod again;
mod bodies;
mod disk;
mod faults;
mod format;
mod framing;
mod guarantees;
mod http2;
mod keys;
mod operation;
mod replies;
mod store;
mod time;
mod upstream;

use std::sync::OnceLock;

use onlyonce_testkit::{Gateway, Request, Response, Setup, Upstream};

/// The program under test: the binary, or what `ONLYONCE_HOSTILE_PROGRAM` names. `crates/layered` runs the
/// cases that concern the layer so, against a server that has it.
fn program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let other = std::env::var("ONLYONCE_HOSTILE_PROGRAM");
        other.unwrap_or_else(|_| env!("CARGO_BIN_EXE_onlyonce").to_owned())
    })
}

/// A gateway before this upstream, to be configured.
fn setup(upstream: &Upstream) -> Setup {
    Setup::new(program(), &upstream.url())
}

/// A gateway before this upstream, all by default.
fn gateway(upstream: &Upstream) -> Gateway {
    Gateway::before(program(), &upstream.url())
}

/// A keyed `POST` with a body.
fn post(path: &str, key: &str, body: &str) -> Request {
    Request::post(path).key(key).body(body)
}

/// Panics unless this is a first answer: whole, with the status, marked as executed.
#[track_caller]
fn expect_executed(response: &Response, status: u16) {
    response.expect_status(status).expect_mark("executed");
    assert!(
        response
            .header("onlyonce-operation")
            .is_some_and(|v| v.starts_with("op_"))
    );
    assert_eq!(response.header("idempotent-replayed"), None);
}

/// Panics unless this replays that answer byte for byte, the marks aside.
#[track_caller]
fn expect_replay(response: &Response, of: &Response) {
    response.expect_status(of.status()).expect_mark("replayed");
    assert_eq!(response.header("idempotent-replayed"), Some("true"));
    expect_same(response, of);
}

/// Panics unless both are the same answer of the same operation, the marks aside.
#[track_caller]
fn expect_same(one: &Response, other: &Response) {
    assert_eq!(one.text(), other.text());
    assert_eq!(one.trailers, other.trailers);
    assert_eq!(theirs(one), theirs(other), "headers of the same answer");
    assert_eq!(
        one.header("onlyonce-operation"),
        other.header("onlyonce-operation")
    );
}

/// The upstream's headers in an answer: no marks, no framing, none that a hop adds.
fn theirs(response: &Response) -> Vec<(String, String)> {
    let ours = [
        "content-length",
        "transfer-encoding",
        "connection",
        "date",
        "keep-alive",
        "trailer",
    ];
    response
        .head
        .headers
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
        .filter(|(name, _)| {
            !name.starts_with("onlyonce-")
                && name != "idempotent-replayed"
                && name != "set-cookie"
                && !ours.contains(&name.as_str())
        })
        .collect()
}

/// Bytes that do not compress, the same each time (xorshift, Marsaglia 2003).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The bytes that a line of `/proc/PID/status` tells of a process: `VmRSS:` now, `VmHWM:` at the most.
fn memory_of(pid: u32, line: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let told = status.lines().find_map(|found| found.strip_prefix(line));
    let kib = told.unwrap().split_whitespace().next().unwrap();
    kib.parse::<usize>().unwrap() * 1024
}
