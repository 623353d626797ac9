//! The official OpenAI SDK for Python.

use serde_json::{Value, json};

use crate::kit::{
    Call, Provider, Said, attempts, base, expect_metered, gateway, recording, run, run_once,
    sdk_retried, setup,
};

const CLIENT: &str = "openai_client.py";
const PIECES: u32 = 12;

/// A job of a call, with what the sandbox shall do.
fn job(base: &str, call: &str, stream: bool, key: &str) -> Value {
    json!({
        "base": base, "call": call, "stream": stream, "key": key,
        "headers": { "X-Sandbox-Chunks": PIECES.to_string(), "X-Sandbox-Interval": "5ms" },
    })
}

fn with(mut job: Value, more: &[(&str, Value)]) -> Value {
    for (name, value) in more {
        match name.strip_prefix("header ") {
            Some(header) => job["headers"][header] = value.clone(),
            None => job[*name] = value.clone(),
        }
    }
    job
}

/// One call made twice: run once, the second answered by what was recorded.
fn runs_once(call: &str, stream: bool) {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let job = job(&base(&gateway), call, stream, "k-1");
    let said = run(CLIENT, &with(job, &[("times", json!(2))]));
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

/// The client's patience ends while the provider generates; the SDK retries by itself.
fn times_out_and_retries(call: &str, stream: bool) {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let job = job(&base(&gateway), call, stream, "k-timeout");
    let said = run_once(
        CLIENT,
        &with(
            job,
            &[
                ("timeout", json!(1.0)),
                ("max_retries", json!(8)),
                ("header X-Sandbox-Delay", json!("2500ms")),
            ],
        ),
    );
    sandbox.expect_ran_once(said.text(), PIECES);
    assert!(attempts(&gateway, "k-timeout") >= 2);
    assert!(sdk_retried(&gateway, "k-timeout"));
}

#[test]
fn a_client_timeout_and_the_sdks_own_retry_run_chat_once() {
    times_out_and_retries("chat", false);
}

#[test]
fn a_client_timeout_and_the_sdks_own_retry_run_responses_once() {
    times_out_and_retries("responses", false);
}

#[test]
fn a_client_timeout_before_a_stream_begins_and_the_sdks_own_retry_run_it_once() {
    times_out_and_retries("chat", true);
}

/// An SDK never retries a stream that has begun; the program does, with the same key.
#[test]
fn a_client_timeout_within_a_stream_is_mended_by_the_same_key() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let slow = with(
        job(&base(&gateway), "chat", true, "k-within"),
        &[
            ("header X-Sandbox-Chunks", json!("4")),
            ("header X-Sandbox-Interval", json!("1500ms")),
        ],
    );
    let first = run_once(CLIENT, &with(slow.clone(), &[("timeout", json!(0.5))]));
    assert!(matches!(first, Said::Error(..)), "{first:?}");
    let second = run_once(CLIENT, &slow);
    assert!(attempts(&gateway, "k-within") >= 2);
    sandbox.expect_ran_once(second.text(), 4);
}

/// A process dies in the middle of its stream; another one asks with the same key.
fn killed_and_asked_again(call: &str) {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let job = with(
        job(&base(&gateway), call, true, "k-killed"),
        &[
            ("bytes", json!(true)),
            ("header X-Sandbox-Interval", json!("100ms")),
        ],
    );
    let first = Call::start(CLIENT, &job);
    first.wait_for_piece("Execution 1:");
    first.kill();
    let again = run(CLIENT, &with(job, &[("times", json!(2))]));
    assert_eq!(sandbox.executions(), 1);
    assert_eq!(again[0].text(), recording(&gateway, "k-killed"));
    assert_eq!(again[1].marked("replayed"), again[0].text());
    assert_eq!(attempts(&gateway, "k-killed"), 3);
    let last = if call == "chat" {
        "data: [DONE]"
    } else {
        "response.completed"
    };
    assert!(again[0].text().contains(last), "{again:?}");
}

#[test]
fn a_killed_process_is_followed_by_one_that_gets_the_whole_chat_stream() {
    killed_and_asked_again("chat");
}

#[test]
fn a_killed_process_is_followed_by_one_that_gets_the_whole_responses_stream() {
    killed_and_asked_again("responses");
}

#[test]
fn a_second_process_joins_a_running_stream() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let job = with(
        job(&base(&gateway), "chat", true, "k-join"),
        &[("header X-Sandbox-Interval", json!("250ms"))],
    );
    let second = Call::prepare(CLIENT, &job);
    let first = Call::start(CLIENT, &job);
    first.wait_for_piece("Execution 1:");
    let second = second.go().finish();
    let first = first.finish();
    assert_eq!(first[0].marked("executed"), second[0].marked("joined"));
    sandbox.expect_ran_once(second[0].text(), PIECES);
}

#[test]
fn calls_made_at_once_by_the_async_client_run_once() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let job = with(
        job(&base(&gateway), "chat", false, "k-at-once"),
        &[
            ("at_once", json!(8)),
            ("header X-Sandbox-Delay", json!("300ms")),
        ],
    );
    let said = run(CLIENT, &job);
    assert_eq!(said.len(), 8);
    let executed = |said: &&Said| matches!(said, Said::Text(_, Some(mark)) if mark == "executed");
    assert_eq!(said.iter().filter(executed).count(), 1, "{said:?}");
    assert!(
        said.iter().all(|one| one.text() == said[0].text()),
        "{said:?}"
    );
    sandbox.expect_ran_once(said[0].text(), PIECES);
}

#[test]
fn a_key_used_for_another_request_is_one_error_and_no_retry() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let job = job(&base(&gateway), "chat", false, "k-reused");
    run_once(CLIENT, &job).marked("executed");
    let requests = || gateway.control().metric("onlyonce_requests_total", "");
    let before = requests();
    let other = with(
        job,
        &[
            ("prompt", json!("Another thing.")),
            ("max_retries", json!(5)),
        ],
    );
    run_once(CLIENT, &other).failed_with(422);
    assert_eq!(
        requests() - before,
        1.0,
        "requests of the client that was refused"
    );
    assert_eq!(sandbox.executions(), 1);
}

/// The SDK retries each 502 unless it is told not to.
#[test]
fn an_unknown_outcome_is_one_error_and_no_retry() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let job = with(
        job(&base(&gateway), "chat", false, "k-unknown"),
        &[
            ("max_retries", json!(5)),
            ("header X-Sandbox-Fault", json!("reset-before-head")),
        ],
    );
    run_once(CLIENT, &job).is_unknown();
    assert_eq!(attempts(&gateway, "k-unknown"), 1);
    run_once(CLIENT, &job).failed_with(502);
    assert_eq!(gateway.control().operation("k-unknown")["state"], "unknown");
    assert_eq!(sandbox.executions(), 1);
}

#[test]
fn a_stream_that_the_provider_cut_is_never_taken_for_whole() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let job = with(
        job(&base(&gateway), "chat", true, "k-cut"),
        &[("header X-Sandbox-Fault", json!("cut-stream"))],
    );
    let first = run_once(CLIENT, &job);
    assert!(matches!(first, Said::Error(..)), "{first:?}");
    gateway.control().wait_for_state("k-cut", "unknown");
    run_once(CLIENT, &job).failed_with(502);
    assert_eq!(sandbox.executions(), 1);
}

/// 429 means that nothing was generated: the key is free, and the SDK's own retry runs.
#[test]
fn a_rate_limit_frees_the_key_for_the_sdks_own_retry() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let job = with(
        job(&base(&gateway), "chat", false, "k-limited"),
        &[
            ("header X-Sandbox-Fault", json!("status:429")),
            ("header X-Sandbox-Times", json!("1")),
            ("header X-Sandbox-Tag", json!("limited")),
        ],
    );
    let said = run_once(CLIENT, &job);
    said.marked("executed");
    assert_eq!(sandbox.outcomes(), ["failed", "completed"]);
    assert_eq!(said.text(), sandbox.text_of(2, PIECES));
}

/// Where a route rejects what runs already, the SDK waits and gets the replay.
#[test]
fn a_rejected_retry_is_sent_again_by_the_sdk_until_it_is_replayed() {
    let sandbox = Provider::sandbox();
    let gateway = setup(&sandbox, "openai")
        .route("concurrent = \"reject\"")
        .start();
    let job = with(
        job(&base(&gateway), "chat", true, "k-reject"),
        &[("header X-Sandbox-Interval", json!("200ms"))],
    );
    let second = Call::prepare(CLIENT, &with(job.clone(), &[("max_retries", json!(20))]));
    let first = Call::start(CLIENT, &job);
    first.wait_for_piece("Execution 1:");
    let second = second.go().finish();
    assert_eq!(
        second[0].marked("replayed"),
        first.finish()[0].marked("executed")
    );
    assert!(attempts(&gateway, "k-reject") >= 3);
    sandbox.expect_ran_once(second[0].text(), PIECES);
}

#[test]
fn an_answer_outlives_a_killed_gateway() {
    let sandbox = Provider::sandbox();
    let mut gateway = gateway(&sandbox, "openai");
    let first = run_once(
        CLIENT,
        &job(&base(&gateway), "responses", true, "k-restart"),
    );
    gateway.control().wait_for_state("k-restart", "completed");
    gateway.start_again();
    let second = run_once(
        CLIENT,
        &job(&base(&gateway), "responses", true, "k-restart"),
    );
    assert_eq!(second.marked("replayed"), first.marked("executed"));
    sandbox.expect_ran_once(second.text(), PIECES);
}

#[test]
fn two_callers_with_one_key_do_not_see_each_other() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let job = job(&base(&gateway), "chat", false, "k-shared");
    let mine = run_once(
        CLIENT,
        &with(job.clone(), &[("credential", json!("sk-mine"))]),
    );
    let yours = run_once(CLIENT, &with(job, &[("credential", json!("sk-yours"))]));
    assert_ne!(mine.marked("executed"), yours.marked("executed"));
    assert_eq!(sandbox.executions(), 2);
}

#[test]
fn without_a_key_each_call_runs() {
    let sandbox = Provider::sandbox();
    let gateway = gateway(&sandbox, "openai");
    let mut job = with(
        job(&base(&gateway), "chat", true, ""),
        &[("times", json!(2))],
    );
    job.as_object_mut().expect("an object").remove("key");
    let said = run(CLIENT, &job);
    assert_ne!(said[0].text(), said[1].text());
    assert_eq!(sandbox.executions(), 2);
}
