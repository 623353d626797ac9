//! What an operation used and cost, as its answer tells: in the record, once, whoever retries.

use std::io::Write as _;

use onlyonce_testkit::{Gateway, Setup, Upstream, eventually};
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

/// An API that nobody but its owner knows, which tells what was used in words of its own.
const HOUSE: &str = r#"
[[usage]]
name = "house"
paths = "/generate/{model}"
provider = "house"
operation = "chat"
within = ["", "/result"]
model = "/engine"
response_id = "/job"
at = "/billing"
units = { input = ["/in/text", "/in/files"], output = "/out", reasoning = "/thought" }
cost = "/dollars"
complete = "finished"
"#;

#[test]
fn a_format_of_ones_own_is_read_from_json_and_from_streams() {
    let upstream = Upstream::scripted(|x| match x.key() {
        Some("plain") => {
            let answer = json!({ "job": "j-1", "engine": "house-7b-2", "text": "Hi", "billing": {
                "in": { "text": 100, "files": 23 }, "out": 45, "thought": 5, "dollars": 0.0125,
            } });
            x.answer(200, &[JSON], answer.to_string().as_bytes());
        }
        key => {
            let billing = |more: Value| json!({ "result": { "billing": more } });
            let mut begun = billing(json!({ "in": { "text": 1000 }, "out": 1 }));
            begun["result"]["job"] = json!("j-2");
            begun["result"]["engine"] = json!("house-7b-2");
            let end = billing(json!({ "out": 450, "dollars": 0.25 }));
            let mut stream = format!("event: begun\ndata: {begun}\n\n: still here\n\ndata: Hi\n\n");
            if key == Some("streamed") {
                stream += &format!("event: finished\ndata: {end}\n\n");
            }
            x.start_chunked(200, &[SSE]);
            for piece in stream.as_bytes().chunks(7) {
                x.chunk(piece);
            }
            x.end_chunks();
        }
    });
    let gateway = setup(&upstream)
        .route("usage = [\"house\"]\nforward_key = \"idempotency-key\"")
        .extra(HOUSE)
        .start();
    for (key, told, cost, id) in [
        (
            "plain",
            json!({ "input": 123, "output": 45, "reasoning": 5 }),
            "0.0125",
            "j-1",
        ),
        (
            "streamed",
            json!({ "input": 1000, "output": 450 }),
            "0.25",
            "j-2",
        ),
    ] {
        expect_executed(&gateway.post("/generate/house-7b", key, "{}"));
        let metered = metered(&gateway, key);
        assert_eq!(metered["usage"], told, "{metered}");
        assert_eq!(metered["cost"]["usd"], cost, "{metered}");
        assert_eq!(metered["cost"]["basis"], "stated", "{metered}");
        for (name, value) in [
            ("source", "provider"),
            ("provider", "house"),
            ("operation", "chat"),
            ("model", "house-7b-2"),
            ("request_model", "house-7b"),
            ("response_id", id),
        ] {
            assert_eq!(metered[name], value, "{key}: {name}");
        }
    }
    let mut total = Value::Null;
    eventually("both are in the ledger", || {
        let ledger = gateway.control().json("/v1/ledger?by=provider,model");
        total = ledger["rows"][0].clone();
        total["operations"] == 2
    });
    for (name, value) in [
        ("provider", json!("house")),
        ("model", json!("house-7b-2")),
        ("input", json!(1123)),
        ("output", json!(495)),
        ("spent_usd", json!("0.2625")),
        ("unpriced", json!(0)),
        ("unmetered", json!(0)),
    ] {
        assert_eq!(total[name], value, "{name}: {total}");
    }
    // A stream that ends without its last event is not called whole.
    gateway.post("/generate/house-7b", "early", "{}");
    let told = metered(&gateway, "early");
    assert_eq!(told["usage"], json!({ "input": 1000, "output": 1 }));
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

const STREAM: &str =
    r#"{"messages":[{"role":"user","content":"Hi"}],"model":"gpt-4o","stream":true}"#;
const ASKING: &str = r#"{"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"Hi"}],"model":"gpt-4o","stream":true}"#;

/// A streamed chat of OpenAI's, in its events; `asked` says whether it tells its use.
fn chat_stream(asked: bool) -> Vec<String> {
    let chunk = |choices: &str, usage: &str| {
        let usage = if asked {
            format!(",\"usage\":{usage}")
        } else {
            String::new()
        };
        format!(
            "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"choices\":{choices}{usage}}}\n\n"
        )
    };
    let mut events = vec![
        chunk(r#"[{"index":0,"delta":{"content":"Hi"}}]"#, "null"),
        chunk(r#"[{"index":0,"delta":{},"finish_reason":"stop"}]"#, "null"),
    ];
    if asked {
        let usage = r#"{"prompt_tokens":1000,"completion_tokens":2000}"#;
        events.push(chunk("[]", usage));
    }
    events.push("data: [DONE]\n\n".to_owned());
    events
}

/// Whether a request asks for usage, as OpenAI reads it.
fn asks(body: &[u8]) -> bool {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    body["stream"] == true && body["stream_options"]["include_usage"] == true
}

/// OpenAI, as far as its streamed chats go; its answers come in pieces of `size` bytes.
fn streaming(size: usize) -> Upstream {
    Upstream::scripted(move |x| {
        let body = x.read_body();
        let answer = chat_stream(asks(&body)).concat();
        x.start_chunked(200, &[SSE]);
        for piece in answer.as_bytes().chunks(size) {
            x.chunk(piece);
        }
        x.end_chunks();
    })
}

fn adding(upstream: &Upstream) -> Gateway {
    before(upstream, "openai")
        .route("include_usage = \"add\"")
        .start()
}

fn chat_post(key: &str, body: &str) -> onlyonce_testkit::Request {
    post(CHAT, key, body)
        .header("Content-Type", "application/json")
        .header("Accept-Encoding", "gzip, br")
}

fn recording(gateway: &Gateway, key: &str) -> Vec<u8> {
    let id = gateway.control().operation(key)["id"].clone();
    let path = format!("/v1/operations/{}/recording", id.as_str().unwrap());
    gateway.control().get(&path).expect_status(200).body.clone()
}

#[test]
fn i04_usage_that_only_the_gateway_asked_for_is_metered_and_never_recorded_or_shown() {
    let whole = chat_stream(true).concat().len();
    for size in [1, 7, 100, whole] {
        let upstream = streaming(size);
        let gateway = adding(&upstream);
        let first = gateway.send(&chat_post("k", STREAM));
        expect_executed(&first);
        // As if it had not been asked for.
        assert_eq!(first.text(), chat_stream(false).concat());
        let seen = upstream.seen().remove(0);
        assert_eq!(seen.body.as_deref(), Some(ASKING.as_bytes()));
        assert_eq!(seen.head.content_length(), Some(ASKING.len()));
        assert_eq!(seen.head.all("accept-encoding"), ["identity"]);
        gateway.control().wait_for_state("k", "completed");
        assert_eq!(recording(&gateway, "k"), first.body);
        let told = metered(&gateway, "k");
        assert_eq!(told["usage"], json!({ "input": 1000, "output": 2000 }));
        assert_eq!(told["source"], "provider");
        expect_replay(&gateway.send(&chat_post("k", STREAM)), &first);
        // What the gateway added is not what the caller sent.
        gateway
            .send(&chat_post("k", ASKING))
            .expect_problem(422, "key-reused");
        assert_eq!(upstream.hits(), 1);
    }
}

#[test]
fn who_asks_for_usage_gets_it_and_who_may_not_be_helped_is_left_alone() {
    let upstream = streaming(50);
    let gateway = adding(&upstream);
    let asked = gateway.send(&chat_post("asked", ASKING));
    assert_eq!(asked.text(), chat_stream(true).concat());
    let packed = chat_post("packed", STREAM).header("Content-Encoding", "br");
    let no_json = post(CHAT, "no-json", STREAM).header("Content-Type", "text/plain");
    let plain = chat_post("plain", r#"{"model":"gpt-4o","messages":[]}"#);
    let elsewhere =
        post("/v1/responses", "elsewhere", STREAM).header("Content-Type", "application/json");
    for request in [&packed, &no_json, &plain, &elsewhere] {
        gateway.send(request).expect_status(200);
    }
    let seen = upstream.seen();
    let bodies: Vec<_> = seen.iter().map(|seen| seen.body.clone().unwrap()).collect();
    assert_eq!(bodies[0], ASKING.as_bytes());
    assert_eq!(bodies[1], STREAM.as_bytes());
    assert_eq!(bodies[2], STREAM.as_bytes());
    assert_eq!(bodies[3], br#"{"model":"gpt-4o","messages":[]}"#);
    assert_eq!(bodies[4], STREAM.as_bytes());
    let codings = |at: usize| seen[at].head.all("accept-encoding").join(", ");
    assert_eq!(codings(0), "gzip, br");
    assert_eq!(codings(3), "gzip, br");
    // Without the setting nothing is added.
    let upstream = streaming(50);
    let gateway = before(&upstream, "openai").start();
    let first = gateway.send(&chat_post("k", STREAM));
    assert_eq!(first.text(), chat_stream(false).concat());
    assert_eq!(metered(&gateway, "k")["source"], "unknown");
    assert_eq!(upstream.seen()[0].body.as_deref(), Some(STREAM.as_bytes()));
}

#[test]
fn usage_is_asked_for_in_bodies_that_come_in_chunks_and_those_that_wait_on_disk() {
    let upstream = streaming(1_000);
    let gateway = before(&upstream, "openai")
        .route("include_usage = \"add\"")
        .limits("spool_above = \"64KiB\"")
        .start();
    let content = "word ".repeat(200_000);
    let long = STREAM.replace("Hi", &content);
    for (key, body) in [("short", STREAM), ("long", &*long)] {
        let request = chat_post(key, "")
            .no_length()
            .header("Transfer-Encoding", "chunked");
        let mut client = gateway.connect();
        client.send_bytes(&request.head_bytes());
        for piece in body.as_bytes().chunks(40_000) {
            client.send_bytes(format!("{:x}\r\n", piece.len()).as_bytes());
            client.send_bytes(piece).send_bytes(b"\r\n");
        }
        client.send_bytes(b"0\r\n\r\n");
        let answer = client.response();
        expect_executed(&answer);
        assert_eq!(answer.text(), chat_stream(false).concat(), "{key}");
        assert_eq!(metered(&gateway, key)["usage"]["output"], 2000, "{key}");
    }
    let long_asking = ASKING.replace("Hi", &content);
    let seen = upstream.seen();
    for (seen, asking) in seen.iter().zip([ASKING, &*long_asking]) {
        assert!(
            seen.body.as_deref() == Some(asking.as_bytes()),
            "another body"
        );
        assert_eq!(seen.head.content_length(), Some(asking.len()));
    }
}

#[test]
fn a_stream_with_a_length_is_shown_without_it_where_its_usage_is_not() {
    let upstream = Upstream::scripted(|x| {
        let body = x.read_body();
        x.answer(200, &[SSE], chat_stream(asks(&body)).concat().as_bytes());
    });
    let gateway = adding(&upstream);
    let first = gateway.send(&chat_post("k", STREAM));
    expect_executed(&first);
    assert_eq!(first.text(), chat_stream(false).concat());
    expect_replay(&gateway.send(&chat_post("k", STREAM)), &first);
    assert_eq!(metered(&gateway, "k")["usage"]["input"], 1000);
    assert_eq!(recording(&gateway, "k"), first.body);
}

#[test]
fn an_event_is_held_back_no_longer_than_to_its_end() {
    let go = onlyonce_testkit::Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.read_body();
        let events = chat_stream(true);
        x.start_chunked(200, &[SSE]);
        x.chunk(&events[0]);
        wait.wait();
        for event in &events[1..] {
            x.chunk(event);
        }
        x.end_chunks();
    });
    let gateway = adding(&upstream);
    let mut client = gateway.begin(&chat_post("k", STREAM));
    client.read_head();
    client.read_until("\"Hi\"}}]}\n\n");
    go.fire();
    assert_eq!(client.finish().text(), chat_stream(false).concat());
}

#[test]
fn a_late_answer_is_shown_without_what_was_not_asked_for() {
    let go = onlyonce_testkit::Signal::new();
    let wait = go.clone();
    let upstream = Upstream::scripted(move |x| {
        x.read_body();
        wait.wait();
        x.start_chunked(200, &[SSE]);
        x.chunk(chat_stream(true).concat());
        x.end_chunks();
    });
    let gateway = before(&upstream, "openai")
        .route("include_usage = \"add\"\nfirst_byte_timeout = \"300ms\"")
        .start();
    gateway
        .send(&chat_post("k", STREAM))
        .expect_problem(504, "outcome-unknown");
    go.fire();
    gateway.control().wait_for_state("k", "completed");
    let replay = gateway.send(&chat_post("k", STREAM));
    assert_eq!(
        replay.expect_mark("replayed").text(),
        chat_stream(false).concat()
    );
    assert_eq!(metered(&gateway, "k")["usage"]["input"], 1000);
}

#[test]
fn the_model_that_is_asked_for_is_known_before_any_answer_and_when_none_comes() {
    let upstream = Upstream::scripted(|x| {
        x.read_body();
        match x.key() {
            Some("broken") => x.reset(),
            _ => x.wait_for_close(),
        }
    });
    let mut gateway = before(&upstream, "openai")
        .route("forward_key = \"idempotency-key\"")
        .start();
    gateway
        .send(&chat_post("broken", STREAM))
        .expect_problem(502, "outcome-unknown");
    let _waits = gateway.begin(&chat_post("running", STREAM));
    upstream.wait_for_hits(2);
    let asked = |gateway: &Gateway, key: &str, state: &str| {
        let operation = gateway.control().operation(key);
        assert_eq!(operation["state"], state);
        operation["metered"]["request_model"].clone()
    };
    assert_eq!(asked(&gateway, "broken", "unknown"), "gpt-4o");
    assert_eq!(asked(&gateway, "running", "in_flight"), "gpt-4o");
    gateway.kill();
    gateway.start_again();
    gateway.control().wait_for_state("running", "unknown");
    assert_eq!(asked(&gateway, "running", "unknown"), "gpt-4o");
    let found = gateway
        .control()
        .json("/v1/operations?model=gpt-4o&state=unknown");
    assert_eq!(found["operations"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_path_names_the_model_before_any_answer() {
    let upstream = Upstream::scripted(|x| x.reset());
    let gateway = before(&upstream, "gemini").start();
    let path = "/v1beta/models/gemini-2.5-flash:generateContent";
    gateway
        .post(path, "k", "{}")
        .expect_problem(502, "outcome-unknown");
    assert_eq!(metered(&gateway, "k")["request_model"], "gemini-2.5-flash");
}

#[test]
fn a_model_that_no_answer_names_is_the_one_that_was_asked_for() {
    let upstream = Upstream::scripted(|x| {
        x.read_body();
        let usage = r#"{"usage":{"prompt_tokens":1000,"completion_tokens":2000}}"#;
        x.answer(200, &[JSON], usage.as_bytes());
    });
    let gateway = before(&upstream, "openai")
        .limits("spool_above = \"1KiB\"")
        .start();
    let body = r#"{"messages":[{"content":"\"model\":\"no\""}],"model":"gpt-4o"}"#;
    gateway.send(&chat_post("k", body)).expect_status(200);
    let told = metered(&gateway, "k");
    assert_eq!(
        (&told["model"], &told["request_model"]),
        (&json!(""), &json!("gpt-4o"))
    );
    // 1,000 at 2.50 and 2,000 at 10 dollars for a million.
    assert_eq!(told["cost"]["usd"], "0.0225");
    let on_disk = body.replace("no", &"no".repeat(2_000));
    gateway
        .send(&chat_post("disk", &on_disk))
        .expect_status(200);
    assert_eq!(metered(&gateway, "disk")["request_model"], "gpt-4o");
    // Packed bodies are not read.
    let packed = chat_post("packed", body).header("Content-Encoding", "gzip");
    gateway.send(&packed).expect_status(200);
    assert_eq!(metered(&gateway, "packed")["request_model"], "");
}
