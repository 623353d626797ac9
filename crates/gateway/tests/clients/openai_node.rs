//! The official OpenAI SDK for Node.

use serde_json::{Value, json};

use crate::kit::{
    Call, Provider, attempts, base, expect_metered, gateway, recording, run, run_once, sdk_retried,
    setup,
};

const CLIENT: &str = "openai_client.cjs";
const PIECES: u32 = 12;

fn job(base: &str, call: &str, stream: bool, key: &str) -> Value {
    json!({
        "base": base, "call": call, "stream": stream, "key": key,
        "headers": { "X-Sandbox-Chunks": PIECES.to_string(), "X-Sandbox-Interval": "5ms" },
    })
}

/// One call made twice: run once, the second answered by what was recorded.
fn runs_once(call: &str, stream: bool) {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let mut job = job(&base(&gateway), call, stream, "k-1");
    job["times"] = json!(2);
    let said = run(CLIENT, &job);
    let text = said[0].marked("executed");
    assert_eq!(said[1].recorded(), text);
    expect_metered(&gateway, "k-1", PIECES, !(stream && call == "chat"));
    sandbox.expect_ran_once(text, PIECES);
}

#[test]
fn chat_runs_once() {
    runs_once("chat", false);
}

#[test]
fn chat_streaming_runs_once() {
    runs_once("chat", true);
}

/// A stream whose usage the gateway asks for. `asks` says what the SDK asks for itself.
fn tells_its_usage(asks: Option<bool>) {
    let sandbox = Provider::sandbox();
    let gateway = setup(&sandbox, "openai")
        .route("include_usage = \"add\"")
        .start();
    let mut job = job(&base(&gateway), "chat", true, "k-usage");
    job["times"] = json!(2);
    if let Some(asks) = asks {
        job["include_usage"] = json!(asks);
    }
    let said = run(CLIENT, &job);
    let text = said[0].marked("executed");
    assert_eq!(said[1].recorded(), text);
    expect_metered(&gateway, "k-usage", PIECES, true);
    gateway.control().wait_for_state("k-usage", "completed");
    let is_told = asks == Some(true);
    assert_eq!(
        recording(&gateway, "k-usage").contains("\"usage\""),
        is_told
    );
    let told = format!("<usage of {PIECES}>");
    let said = match is_told {
        true => text.strip_suffix(told.as_str()).expect("its usage"),
        false => text,
    };
    sandbox.expect_ran_once(said, PIECES);
}

#[test]
fn usage_that_the_gateway_asks_for_is_metered_and_not_seen() {
    tells_its_usage(None);
    tells_its_usage(Some(false));
}

#[test]
fn usage_that_the_sdk_asks_for_is_metered_and_seen() {
    tells_its_usage(Some(true));
}

#[test]
fn responses_run_once() {
    runs_once("responses", false);
}

#[test]
fn responses_streaming_run_once() {
    runs_once("responses", true);
}

#[test]
fn a_client_timeout_and_the_sdks_own_retry_run_once() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let mut job = job(&base(&gateway), "chat", false, "k-timeout");
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
    let gateway = gateway(&sandbox, "openai");
    let mut job = job(&base(&gateway), "responses", true, "k-killed");
    job["headers"]["X-Sandbox-Interval"] = json!("100ms");
    let first = Call::start(CLIENT, &job);
    first.wait_for_piece("Execution 1:");
    first.kill();
    let again = run_once(CLIENT, &job);
    assert_eq!(attempts(&gateway, "k-killed"), 2);
    sandbox.expect_ran_once(again.text(), PIECES);
}

#[test]
fn an_unknown_outcome_is_one_error_and_no_retry() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let mut job = job(&base(&gateway), "chat", false, "k-unknown");
    job["max_retries"] = json!(5);
    job["headers"]["X-Sandbox-Fault"] = json!("reset-after-head");
    // The head promised an answer, so that the first error is a broken one; from then on it is
    // known to be unknown.
    run_once(CLIENT, &job);
    gateway.control().wait_for_state("k-unknown", "unknown");
    let before = attempts(&gateway, "k-unknown");
    run_once(CLIENT, &job).is_unknown();
    assert_eq!(attempts(&gateway, "k-unknown"), before + 1);
    assert_eq!(sandbox.executions(), 1);
}

#[test]
fn a_key_used_for_another_request_is_one_error_and_no_retry() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let mut job = job(&base(&gateway), "responses", false, "k-reused");
    run_once(CLIENT, &job).marked("executed");
    let requests = || gateway.control().metric("onlyonce_requests_total", "");
    let before = requests();
    job["prompt"] = json!("Another thing.");
    job["max_retries"] = json!(5);
    run_once(CLIENT, &job).failed_with(422);
    assert_eq!(
        requests() - before,
        1.0,
        "requests of the client that was refused"
    );
    assert_eq!(sandbox.executions(), 1);
}
