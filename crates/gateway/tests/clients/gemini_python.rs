//! The official Google GenAI SDK for Python.

use serde_json::{Value, json};

use crate::kit::{Call, Provider, Said, attempts, base, expect_metered, gateway, run, run_once};

const CLIENT: &str = "gemini_client.py";
const PIECES: u32 = 12;

fn job(base: &str, stream: bool, key: &str) -> Value {
    json!({
        "base": base, "stream": stream, "key": key,
        "headers": { "X-Sandbox-Chunks": PIECES.to_string(), "X-Sandbox-Interval": "5ms" },
    })
}

/// One call made twice: run once, the second answered by what was recorded.
fn runs_once(stream: bool) {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "gemini");
    let mut job = job(&base(&gateway), stream, "k-1");
    job["times"] = json!(2);
    let said = run(CLIENT, &job);
    let text = said[0].marked("executed");
    assert_eq!(said[1].recorded(), text);
    expect_metered(&gateway, "k-1", PIECES, true);
    sandbox.expect_ran_once(text, PIECES);
}

#[test]
fn generate_content_runs_once() {
    runs_once(false);
}

#[test]
fn generate_content_stream_runs_once() {
    runs_once(true);
}

#[test]
fn a_client_timeout_is_mended_by_the_same_key() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "gemini");
    let mut job = job(&base(&gateway), false, "k-timeout");
    job["headers"]["X-Sandbox-Delay"] = json!("2500ms");
    job["timeout"] = json!(1.0);
    let first = run_once(CLIENT, &job);
    assert!(matches!(first, Said::Error(..)), "{first:?}");
    job["timeout"] = json!(60);
    let second = run_once(CLIENT, &job);
    assert!(attempts(&gateway, "k-timeout") >= 2);
    sandbox.expect_ran_once(second.text(), PIECES);
}

#[test]
fn a_killed_process_is_followed_by_one_that_gets_the_whole_stream() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "gemini");
    let mut job = job(&base(&gateway), true, "k-killed");
    job["headers"]["X-Sandbox-Interval"] = json!("100ms");
    let first = Call::start(CLIENT, &job);
    first.wait_for_piece("Execution 1:");
    first.kill();
    let again = run_once(CLIENT, &job);
    assert_eq!(attempts(&gateway, "k-killed"), 2);
    sandbox.expect_ran_once(again.text(), PIECES);
}
