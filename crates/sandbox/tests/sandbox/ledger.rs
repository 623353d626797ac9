//! The ledger counts every execution, and shows it.

use onlyonce_sandbox::{Outcome, Sandbox};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::wire::{start, within_deadline};

#[tokio::test]
async fn the_page_shows_what_ran_and_what_it_cost() {
    let sandbox = start().await;
    let headers = [("idempotency-key", "k-1"), ("x-sandbox-tag", "checkout")];
    sandbox
        .post("/v1/chat/completions?a=b", &headers, "{}")
        .await;
    sandbox.post("/v1/messages", &[], "{}").await;
    let page = sandbox.get("/_sandbox/ledger").await.json();
    assert_eq!(page["executions"], 2);
    assert_eq!(page["charged_usd"], "0.093000");
    let mut first = page["entries"][0].clone();
    let at = first["at"].take();
    let digests = first.as_object_mut().unwrap();
    assert_eq!(digests.remove("request_sha256"), Some(json!(sha256("{}"))));
    assert!(digests.remove("answer_sha256").unwrap().is_string());
    assert_eq!(at.as_str().unwrap().len(), "2025-01-01T00:00:00.000Z".len());
    assert_eq!(
        first,
        json!({
            "n": 1, "at": null, "method": "POST", "path": "/v1/chat/completions",
            "key": "k-1", "tag": "checkout", "price_usd": "0.042000",
            "usage": { "input": 1, "output": 20 }, "outcome": "completed",
        })
    );
    assert_eq!(page["entries"][1]["key"], json!(null));
}

fn sha256(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest
        .as_ref()
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[tokio::test]
async fn an_entry_has_the_digest_of_an_answer_that_was_given_whole_and_of_no_other() {
    let sandbox = start().await;
    let stream = r#"{"model":"m","messages":[],"stream":true}"#;
    let quick = ("x-sandbox-interval", "0ms");
    let whole = [
        sandbox.post("/v1/echo", &[], "a").await.body(),
        sandbox
            .post("/v1/chat/completions", &[quick], stream)
            .await
            .body(),
        sandbox
            .post("/v1/echo", &[("x-sandbox-fault", "status:503")], "")
            .await
            .body(),
    ];
    for fault in ["cut-stream", "reset-after-head", "reset-before-head"] {
        let headers = [quick, ("x-sandbox-fault", fault)];
        sandbox.post("/v1/chat/completions", &headers, stream).await;
    }
    let page = sandbox.get("/_sandbox/ledger").await.json();
    let digests = page["entries"].as_array().unwrap().iter();
    let digests: Vec<_> = digests
        .map(|entry| entry["answer_sha256"].clone())
        .collect();
    for (digest, body) in digests.iter().zip(&whole) {
        assert_eq!(digest, &json!(sha256(body)), "{body}");
    }
    assert_eq!(digests[3..], [json!(null), json!(null), json!(null)]);
}

#[tokio::test]
async fn without_its_header_a_key_is_taken_from_the_checkers() {
    let sandbox = start().await;
    sandbox
        .post("/v1/echo", &[("x-verify-key", "v-1")], "")
        .await;
    let both = [("x-verify-key", "v-2"), ("idempotency-key", "k-2")];
    sandbox.post("/v1/echo", &both, "").await;
    let keys: Vec<_> = sandbox
        .ledger
        .snapshot()
        .entries
        .into_iter()
        .map(|entry| entry.key)
        .collect();
    assert_eq!(keys, [Some("v-1".to_owned()), Some("k-2".to_owned())]);
}

#[tokio::test]
async fn an_entry_holds_the_tokens_that_its_answer_tells() {
    let sandbox = start().await;
    let three = [("x-sandbox-chunks", "3"), ("x-sandbox-interval", "0ms")];
    let body = r#"{"model":"m","messages":[]}"#;
    let chat = sandbox.post("/v1/chat/completions", &three, body).await;
    let chat = &chat.json()["usage"];
    let message = sandbox.post("/v1/messages", &three, body).await;
    let message = &message.json()["usage"];
    let response = sandbox.post("/v1/responses", &three, body).await;
    let response = &response.json()["usage"];
    let path = "/v1beta/models/m:generateContent";
    let gemini = sandbox.post(path, &three, body).await;
    let gemini = &gemini.json()["usageMetadata"];
    let told = [
        (&chat["prompt_tokens"], &chat["completion_tokens"]),
        (&message["input_tokens"], &message["output_tokens"]),
        (&response["input_tokens"], &response["output_tokens"]),
        (&gemini["promptTokenCount"], &gemini["candidatesTokenCount"]),
    ];
    let page = sandbox.ledger.snapshot();
    for (entry, (input, output)) in page.entries.iter().zip(told) {
        let usage = entry.usage.expect("tokens");
        assert_eq!((input, output), (&json!(usage.input), &json!(usage.output)));
        assert_eq!((usage.input, usage.output), (7, 3), "{}", entry.path);
    }
}

#[tokio::test]
async fn what_generates_nothing_has_no_tokens() {
    let sandbox = start().await;
    let cut = [
        ("x-sandbox-fault", "cut-stream"),
        ("x-sandbox-interval", "0ms"),
    ];
    sandbox
        .post("/v1/messages", &cut, r#"{"stream":true}"#)
        .await;
    let refused = [("x-sandbox-fault", "status:429")];
    sandbox.post("/v1/messages", &refused, "{}").await;
    sandbox.post("/v1/echo", &[], "{}").await;
    let page = sandbox.ledger.snapshot();
    let output = |n: usize| page.entries[n].usage.map(|usage| usage.output);
    assert_eq!([output(0), output(1), output(2)], [Some(20), None, None]);
}

#[tokio::test]
async fn one_key_twice_is_two_executions_with_different_answers() {
    let sandbox = start().await;
    let key = [("idempotency-key", "k-1")];
    let one = sandbox.post("/v1/charges", &key, "amount=5").await;
    let two = sandbox.post("/v1/charges", &key, "amount=5").await;
    assert_ne!(one.body(), two.body());
    assert_eq!(
        sandbox.ledger.snapshot().charged_usd.to_string(),
        "0.600000"
    );
}

#[tokio::test]
async fn the_page_can_be_narrowed_and_forgotten() {
    let sandbox = start().await;
    for (key, tag) in [("a b", "x"), ("c", "x"), ("c", "y")] {
        let headers = [("idempotency-key", key), ("x-sandbox-tag", tag)];
        sandbox.post("/v1/echo", &headers, "").await;
    }
    let executions = async |query: &str| {
        let page = sandbox
            .get(&format!("/_sandbox/ledger?{query}"))
            .await
            .json();
        page["executions"].as_u64().unwrap()
    };
    assert_eq!(executions("tag=x").await, 2);
    assert_eq!(executions("key=c").await, 2);
    assert_eq!(executions("key=c&tag=x").await, 1);
    assert_eq!(executions("key=a%20b").await, 1);

    let reset = sandbox.send("DELETE /_sandbox/ledger", &[], b"").await;
    assert_eq!(reset.status(), 204);
    assert_eq!(executions("").await, 0);
    let after = sandbox.post("/v1/echo", &[], "").await.json();
    assert_eq!(after["execution"], 4, "numbers never come back");
}

#[tokio::test]
async fn it_counts_as_soon_as_the_head_is_whole() {
    let sandbox = start().await;
    let mut stream = TcpStream::connect(sandbox.addr).await.unwrap();
    let head = b"POST /v1/echo HTTP/1.1\r\nhost: sandbox\r\ncontent-length: 9\r\n";
    stream.write_all(head).await.unwrap();
    // Another connection is answered meanwhile: the first, without its empty line, is no request.
    sandbox.get("/v1/models").await;
    assert_eq!(sandbox.ledger.snapshot().executions, 0);
    stream.write_all(b"\r\nhal").await.unwrap();
    let page = sandbox.ledger_until(|page| page.executions == 1).await;
    assert_eq!(page.entries[0].outcome, Outcome::Running);
    assert_eq!(page.charged_usd.to_string(), "0.001000");
    drop(stream);
    sandbox
        .ledger_until(|page| page.entries[0].outcome == Outcome::Aborted)
        .await;
}

#[tokio::test]
async fn many_at_once_are_all_counted() {
    let sandbox = start().await;
    let all = (0..100).map(|_| sandbox.post("/v1/echo", &[], "x"));
    let mut bodies = Vec::new();
    for received in futures_util::future::join_all(all).await {
        bodies.push(received.body());
    }
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), 100, "every answer differs");
    let page = sandbox.ledger.snapshot();
    assert_eq!((page.executions, page.charged_usd.micros), (100, 100_000));
}

#[tokio::test]
async fn shutdown_ends_serving_while_clients_hang() {
    let sandbox = Sandbox::bind("127.0.0.1:0").await.unwrap();
    let (addr, ledger) = (sandbox.local_addr(), sandbox.ledger());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(sandbox.serve(async { stopped.await.unwrap_or_default() }));
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = b"POST /v1/echo HTTP/1.1\r\nhost: s\r\nx-sandbox-fault: hang\r\n\r\n";
    stream.write_all(request).await.unwrap();
    within_deadline(async {
        while ledger.snapshot().executions == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    stop.send(()).unwrap();
    within_deadline(server).await.unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
}
