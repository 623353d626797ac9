//! Fake providers that nobody here wrote, with their faults: what they break off is never
//! recorded as an answer.

use onlyonce_testkit::{Gateway, Request};
use serde_json::{Value, json};

use crate::kit::{Provider, Said, base, gateway, recording, run, run_once};

const CLIENT: &str = "openai_client.py";

fn job(base: &str, prompt: &str, key: &str) -> Value {
    json!({ "base": base, "call": "chat", "stream": true, "key": key, "prompt": prompt })
}

/// The operation is unknown, every retry is told so, and nothing is sent again.
fn stays_unknown(gateway: &Gateway, job: &Value, key: &str) {
    gateway.control().wait_for_state(key, "unknown");
    run_once(CLIENT, job).failed_with(502);
    run_once(CLIENT, job).failed_with(502);
    let operation = gateway.control().operation(key);
    assert_eq!(operation["state"], "unknown", "{operation}");
    assert_eq!(operation["completed_at"], Value::Null, "{operation}");
}

// aimock, from npm: its `truncateAfterChunks` destroys the connection within the stream.

const LONG: &str = "One two three four five six seven eight nine ten eleven twelve thirteen.";

fn aimock(folder: &tempfile::TempDir) -> Provider {
    let answer = json!({ "content": LONG });
    let fixtures = json!([
        { "match": { "userMessage": "truncate" }, "response": answer, "chunkSize": 6,
          "truncateAfterChunks": 5 },
        { "match": { "userMessage": "disconnect" }, "response": answer, "chunkSize": 6,
          "disconnectAfterMs": 100 },
        { "match": { "userMessage": "whole" }, "response": answer, "chunkSize": 6 },
    ]);
    Provider::aimock(folder.path(), &fixtures)
}

/// How many generations aimock was asked for.
fn aimock_hits(aimock: &Provider) -> usize {
    let journal = aimock.ask(&Request::get("/__aimock/journal"));
    journal.as_array().expect("a journal").len()
}

fn aimock_breaks_off(how: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let aimock = aimock(&folder);
    let gateway = gateway(&aimock, "openai");
    let job = job(&base(&gateway), how, "k-broken");
    let first = run_once(CLIENT, &job);
    assert!(matches!(first, Said::Error(..)), "{first:?}");
    stays_unknown(&gateway, &job, "k-broken");
    assert_eq!(aimock_hits(&aimock), 1);
}

#[test]
fn a_stream_that_aimock_truncates_is_never_complete() {
    aimock_breaks_off("truncate");
}

#[test]
fn a_stream_that_aimock_disconnects_is_never_complete() {
    aimock_breaks_off("disconnect");
}

#[test]
fn a_whole_stream_of_aimock_runs_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let aimock = aimock(&folder);
    let gateway = gateway(&aimock, "openai");
    let mut job = job(&base(&gateway), "whole", "k-whole");
    job["times"] = json!(2);
    let said = run(CLIENT, &job);
    assert_eq!(said[0].marked("executed"), LONG);
    assert_eq!(said[1].recorded(), LONG);
    assert_eq!(aimock_hits(&aimock), 1);
}

// llmock, from PyPI: it does what the next scenario says.

fn llmock_shall(llmock: &Provider, behaviour: Value) {
    let scenario = json!({ "behaviors": [behaviour] });
    llmock.ask(&Request::post("/_llmock/scenario").body(scenario.to_string()));
}

/// How many generations llmock was asked for.
fn llmock_hits(llmock: &Provider) -> u64 {
    let requests = llmock.ask(&Request::get("/_llmock/requests"));
    requests["count"].as_u64().expect("a count")
}

fn llmock_breaks_off(kind: &str, call: &str) {
    let llmock = Provider::llmock();
    let gateway = gateway(&llmock, "openai");
    let fault = json!({ "type": "stream_fault", "kind": kind, "after_chunks": 3 });
    llmock_shall(&llmock, fault);
    let mut job = job(&base(&gateway), "Tell me more.", "k-broken");
    job["call"] = json!(call);
    let first = run_once(CLIENT, &job);
    assert!(matches!(first, Said::Error(..)), "{first:?}");
    stays_unknown(&gateway, &job, "k-broken");
    assert_eq!(llmock_hits(&llmock), 1);
}

#[test]
fn a_stream_that_llmock_disconnects_is_never_complete() {
    llmock_breaks_off("disconnect", "chat");
}

/// Its framing says that it is whole: only `[DONE]` is missing.
#[test]
fn a_stream_that_llmock_truncates_cleanly_is_never_complete() {
    llmock_breaks_off("truncate", "chat");
}

#[test]
fn a_responses_stream_that_llmock_truncates_cleanly_is_never_complete() {
    llmock_breaks_off("truncate", "responses");
}

/// A message that is whole, and one that ends without `message_stop`.
#[test]
fn a_message_that_llmock_truncates_cleanly_is_never_complete() {
    let llmock = Provider::llmock();
    let gateway = gateway(&llmock, "anthropic");
    let url = format!("{}/anthropic", base(&gateway));
    let whole = json!({ "base": url, "stream": true, "key": "k-whole", "times": 2 });
    let said = run("anthropic_client.py", &whole);
    assert_eq!(said[1].recorded(), said[0].marked("executed"));

    let fault = json!({ "type": "stream_fault", "kind": "truncate", "after_chunks": 4 });
    llmock_shall(&llmock, fault);
    let cut = json!({ "base": url, "stream": true, "key": "k-broken" });
    let first = run_once("anthropic_client.py", &cut);
    assert!(matches!(first, Said::Error(..)), "{first:?}");
    gateway.control().wait_for_state("k-broken", "unknown");
    run_once("anthropic_client.py", &cut).failed_with(502);
    assert_eq!(llmock_hits(&llmock), 2);
}

/// The same with Gemini's streams, which end with a finish reason.
#[test]
fn a_gemini_stream_that_llmock_truncates_cleanly_is_never_complete() {
    let llmock = Provider::llmock();
    let gateway = gateway(&llmock, "gemini");
    let url = format!("{}/gemini", base(&gateway));
    let whole = json!({
        "base": url, "version": "v1beta", "stream": true, "key": "k-whole", "times": 2,
    });
    let said = run("gemini_client.py", &whole);
    assert_eq!(said[1].recorded(), said[0].marked("executed"));

    let fault = json!({ "type": "stream_fault", "kind": "truncate", "after_chunks": 2 });
    llmock_shall(&llmock, fault);
    let cut = json!({ "base": url, "version": "v1beta", "stream": true, "key": "k-broken" });
    let first = run_once("gemini_client.py", &cut);
    assert!(matches!(first, Said::Error(..)), "{first:?}");
    gateway.control().wait_for_state("k-broken", "unknown");
    run_once("gemini_client.py", &cut).failed_with(502);
    assert_eq!(llmock_hits(&llmock), 2);
}

#[test]
fn a_stream_that_stalls_in_llmock_becomes_unknown_in_time() {
    let llmock = Provider::llmock();
    let gateway = crate::kit::setup(&llmock, "openai")
        .route("between_bytes_timeout = \"500ms\"")
        .start();
    llmock_shall(
        &llmock,
        json!({ "type": "stream_fault", "kind": "stall", "after_chunks": 3, "stall_seconds": 30 }),
    );
    let job = job(&base(&gateway), "Tell me more.", "k-stalled");
    let first = run_once(CLIENT, &job);
    assert!(matches!(first, Said::Error(..)), "{first:?}");
    gateway.control().wait_for_state("k-stalled", "unknown");
    let second = run_once(CLIENT, &job);
    assert!(
        matches!(second, Said::Error(_, Some(502 | 504))),
        "{second:?}"
    );
    assert_eq!(llmock_hits(&llmock), 1);
}

#[test]
fn an_outage_in_llmock_frees_the_key_for_the_sdks_own_retry() {
    let llmock = Provider::llmock();
    let gateway = gateway(&llmock, "openai");
    llmock_shall(
        &llmock,
        json!({ "type": "fail", "status": 503, "times": 2 }),
    );
    let job = job(&base(&gateway), "Tell me more.", "k-outage");
    let first = run_once(CLIENT, &job);
    first.marked("executed");
    assert_eq!(run_once(CLIENT, &job).recorded(), first.text());
    assert_eq!(llmock_hits(&llmock), 3);
}

/// A status that may follow work is an answer, and a retry does not run it again.
#[test]
fn an_error_in_llmock_that_may_follow_work_is_recorded() {
    let llmock = Provider::llmock();
    let gateway = gateway(&llmock, "openai");
    llmock_shall(
        &llmock,
        json!({ "type": "fail", "status": 500, "times": 1 }),
    );
    let job = job(&base(&gateway), "Tell me more.", "k-500");
    run_once(CLIENT, &job).failed_with(500);
    assert_eq!(gateway.control().operation("k-500")["state"], "completed");
    assert!(!recording(&gateway, "k-500").is_empty());
    assert_eq!(llmock_hits(&llmock), 1);
}
