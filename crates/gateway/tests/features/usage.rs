//! What an operation used and cost, as its answer tells: in the record, once, whoever retries.

use std::io::Write as _;

use onlyonce_testkit::{Gateway, Setup, Upstream};
use serde_json::{Value, json};

use crate::{expect_executed, expect_replay, post, setup};

pub const CHAT: &str = "/v1/chat/completions";
pub const JSON: (&str, &str) = ("Content-Type", "application/json");
pub const SSE: (&str, &str) = ("Content-Type", "text/event-stream");

/// An answer of OpenAI's chat completions.
pub fn chat() -> String {
    json!({
        "id": "chatcmpl-1",
        "model": "gpt-4o-2024-08-06",
        "choices": [{ "message": { "role": "assistant", "content": "Hi" } }],
        "usage": {
            "prompt_tokens": 1000,
            "completion_tokens": 2000,
            "prompt_tokens_details": { "cached_tokens": 400 },
        },
    })
    .to_string()
}

/// An answer of Anthropic's messages as a stream, in pieces.
pub fn messages() -> [String; 3] {
    let event = |name: &str, data: Value| format!("event: {name}\ndata: {data}\n\n");
    [
        event(
            "message_start",
            json!({ "type": "message_start", "message": {
                "id": "msg_1",
                "model": "claude-sonnet-4-5-20250929",
                "usage": { "input_tokens": 20, "output_tokens": 1 },
            } }),
        ),
        event(
            "message_delta",
            json!({ "type": "message_delta", "usage": { "output_tokens": 90 } }),
        ),
        event("message_stop", json!({ "type": "message_stop" })),
    ]
}

pub fn before(upstream: &Upstream, preset: &str) -> Setup {
    setup(upstream).upstream(&format!("preset = \"{preset}\""))
}

fn metered(gateway: &Gateway, key: &str) -> Value {
    gateway.control().operation(key)["metered"].clone()
}

#[test]
fn an_answer_has_its_list_price_once_however_often_it_is_asked_for() {
    let upstream = Upstream::scripted(|x| x.answer(200, &[JSON], chat().as_bytes()));
    let gateway = before(&upstream, "openai").start();
    let first = gateway.post(CHAT, "k", "{}");
    expect_executed(&first);
    let told = metered(&gateway, "k");
    let usage = json!({ "input": 1000, "output": 2000, "cache_read": 400 });
    assert_eq!(told["usage"], usage);
    for (name, value) in [
        ("source", "provider"),
        ("provider", "openai"),
        ("operation", "chat"),
        ("model", "gpt-4o-2024-08-06"),
        ("response_id", "chatcmpl-1"),
    ] {
        assert_eq!(told[name], value, "{name}");
    }
    // 600 at 2.50, 400 at 1.25 and 2,000 at 10 dollars for a million.
    assert_eq!(told["cost"]["usd"], "0.022");
    assert_eq!(told["cost"]["basis"], "table");

    expect_replay(&gateway.post(CHAT, "k", "{}"), &first);
    assert_eq!(metered(&gateway, "k"), told);
    assert_eq!(upstream.hits(), 1);
}

#[test]
fn a_compressed_answer_is_passed_on_as_it_came_and_read() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(chat().as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    let upstream = {
        let packed = packed.clone();
        Upstream::scripted(move |x| x.answer(200, &[JSON, ("Content-Encoding", "gzip")], &packed))
    };
    let gateway = before(&upstream, "openai").start();
    let answer = gateway.post(CHAT, "k", "{}");
    expect_executed(&answer);
    assert_eq!(answer.body, packed);
    assert_eq!(metered(&gateway, "k")["usage"]["output"], 2000);
}

#[test]
fn a_stream_is_read_to_its_end_and_one_that_broke_used_so_much_at_least() {
    let upstream = Upstream::scripted(|x| {
        x.start_chunked(200, &[SSE]);
        let pieces = messages();
        match x.key() {
            Some("cut") => {
                x.chunk(&pieces[0]);
                x.reset();
            }
            _ => {
                for piece in pieces {
                    x.chunk(piece);
                }
                x.end_chunks();
            }
        }
    });
    let gateway = before(&upstream, "anthropic")
        .route("forward_key = \"idempotency-key\"")
        .start();
    let whole = gateway.post("/v1/messages", "whole", "{}");
    expect_executed(&whole);
    let told = metered(&gateway, "whole");
    assert_eq!(told["usage"], json!({ "input": 20, "output": 90 }));
    assert_eq!(told["source"], "provider");
    assert_eq!(told["cost"]["usd"], "0.00141");

    gateway.begin(&post("/v1/messages", "cut", "{}")).finish();
    gateway.control().wait_for_state("cut", "unknown");
    let told = metered(&gateway, "cut");
    assert_eq!(told["usage"], json!({ "input": 20, "output": 1 }));
    assert_eq!(told["source"], "partial");
}

#[test]
fn what_did_not_run_used_nothing_and_what_tells_nothing_is_not_guessed() {
    let upstream = Upstream::scripted(|x| match x.number {
        1 => x.answer(429, &[JSON], chat().as_bytes()),
        2 => x.answer(400, &[JSON], b"{}"),
        _ => x.answer(200, &[JSON], br#"{"model":"gpt-4o"}"#),
    });
    let gateway = before(&upstream, "openai").start();
    gateway.post(CHAT, "released", "{}").expect_status(429);
    assert_eq!(metered(&gateway, "released"), Value::Null);
    gateway.post(CHAT, "refused", "{}").expect_status(400);
    let told = metered(&gateway, "refused");
    assert_eq!(
        (&told["source"], &told["cost"]),
        (&json!("none"), &Value::Null)
    );
    gateway.post(CHAT, "silent", "{}").expect_status(200);
    let told = metered(&gateway, "silent");
    assert_eq!(
        (&told["source"], &told["cost"]),
        (&json!("unknown"), &Value::Null)
    );
}

#[test]
fn a_route_has_its_price_and_a_tenant_its_own() {
    let upstream = Upstream::scripted(|x| x.answer(200, &[JSON], chat().as_bytes()));
    let gateway = before(&upstream, "openai")
        .route("per_call = \"0.25\"")
        .extra(
            "[[tenant]]\nname = \"acme\"\ncredentials = [\"secret-of-acme\"]\n\
             [[tenant.price]]\nmodel = \"gpt-4o*\"\ninput = \"1\"\noutput = \"2\"\n",
        )
        .start();
    let cost = |key: &str| metered(&gateway, key)["cost"].clone();
    gateway.post(CHAT, "anyone", "{}").expect_status(200);
    assert_eq!(cost("anyone")["usd"], "0.25");
    assert_eq!(cost("anyone")["basis"], "route");
    let of_acme = post(CHAT, "acme", "{}").header("Authorization", "Bearer secret-of-acme");
    gateway.send(&of_acme).expect_status(200);
    assert_eq!(cost("acme")["usd"], "0.005");
    assert_eq!(cost("acme")["basis"], "tenant");
}
