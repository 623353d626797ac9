//! The official Anthropic SDK for Python.

use serde_json::{Value, json};

use crate::kit::{
    Call, Provider, attempts, base, expect_metered, gateway, run, run_once, sdk_retried,
};

const CLIENT: &str = "anthropic_client.py";
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
    let gateway = gateway(&sandbox, "anthropic");
    let mut job = job(&base(&gateway), stream, "k-1");
    job["times"] = json!(2);
    let said = run(CLIENT, &job);
    let text = said[0].marked("executed");
    assert_eq!(said[1].recorded(), text);
    expect_metered(&gateway, "k-1", PIECES, true);
    sandbox.expect_ran_once(text, PIECES);
}

#[test]
fn messages_run_once() {
    runs_once(false);
}

#[test]
fn messages_streaming_run_once() {
    runs_once(true);
}

#[test]
fn a_client_timeout_and_the_sdks_own_retry_run_once() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "anthropic");
    let mut job = job(&base(&gateway), false, "k-timeout");
    job["timeout"] = json!(1.0);
    job["max_retries"] = json!(8);
    job["headers"]["X-Sandbox-Delay"] = json!("2500ms");
    let said = run_once(CLIENT, &job);
    sandbox.expect_ran_once(said.text(), PIECES);
    assert!(attempts(&gateway, "k-timeout") >= 2);
    assert!(sdk_retried(&gateway, "k-timeout"));
}

#[test]
fn a_killed_process_is_followed_by_one_that_gets_the_whole_stream() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "anthropic");
    let mut job = job(&base(&gateway), true, "k-killed");
    job["headers"]["X-Sandbox-Interval"] = json!("100ms");
    let first = Call::start(CLIENT, &job);
    first.wait_for_piece("Execution 1:");
    first.kill();
    let again = run_once(CLIENT, &job);
    assert_eq!(attempts(&gateway, "k-killed"), 2);
    sandbox.expect_ran_once(again.text(), PIECES);
}

/// 529 is Anthropic's word for overloaded: nothing was generated.
#[test]
fn an_overloaded_provider_frees_the_key_for_the_sdks_own_retry() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "anthropic");
    let mut job = job(&base(&gateway), false, "k-overloaded");
    job["headers"]["X-Sandbox-Fault"] = json!("status:529");
    job["headers"]["X-Sandbox-Times"] = json!("1");
    job["headers"]["X-Sandbox-Tag"] = json!("overloaded");
    let said = run_once(CLIENT, &job);
    said.marked("executed");
    assert_eq!(sandbox.outcomes(), ["failed", "completed"]);
    assert_eq!(said.text(), sandbox.text_of(2, PIECES));
}

/// The SDK retries each 502 unless it is told not to.
#[test]
fn an_unknown_outcome_is_one_error_and_no_retry() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "anthropic");
    let mut job = job(&base(&gateway), true, "k-unknown");
    job["max_retries"] = json!(5);
    job["headers"]["X-Sandbox-Fault"] = json!("reset-before-head");
    run_once(CLIENT, &job).is_unknown();
    assert_eq!(attempts(&gateway, "k-unknown"), 1);
    assert_eq!(sandbox.executions(), 1);
}
