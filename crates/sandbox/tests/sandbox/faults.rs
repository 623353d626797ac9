//! Each fault breaks exactly what it says.

use onlyonce_sandbox::Outcome;
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::wire::{start, within_deadline};

const CHAT: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"stream":true}"#;

fn fault(fault: &str) -> [(&str, &str); 2] {
    [("x-sandbox-fault", fault), ("x-sandbox-interval", "0ms")]
}

#[tokio::test]
async fn reset_before_head_is_a_tcp_reset_with_nothing_before_it() {
    let sandbox = start().await;
    for (path, body) in [("/v1/echo", ""), (CHAT, STREAM)] {
        let received = sandbox.post(path, &fault("reset-before-head"), body).await;
        assert!(received.was_reset(), "{received:?}");
        assert_eq!(received.bytes, b"");
    }
    let page = sandbox.ledger_until(|page| page.entries.len() == 2).await;
    assert!(
        page.entries
            .iter()
            .all(|entry| entry.outcome == Outcome::Aborted)
    );
    assert_eq!(page.charged_usd.to_string(), "0.043000", "what ran is paid");
}

#[tokio::test]
async fn reset_after_head_is_a_whole_head_and_a_tcp_reset() {
    let sandbox = start().await;
    let streamed = sandbox.post(CHAT, &fault("reset-after-head"), STREAM).await;
    assert!(streamed.was_reset(), "{streamed:?}");
    assert_eq!((streamed.status(), streamed.raw_body()), (200, &b""[..]));
    let whole = sandbox.post(CHAT, &fault("reset-after-head"), "{}").await;
    assert!(whole.was_reset(), "{whole:?}");
    let length: usize = whole.header("content-length").unwrap().parse().unwrap();
    assert!(length > 0 && whole.raw_body().is_empty());
    let page = sandbox.ledger_until(|p| p.entries.iter().all(|e| e.outcome == Outcome::Aborted));
    assert_eq!(page.await.executions, 2);
}

#[tokio::test]
async fn cut_stream_is_half_a_stream_closed_without_its_last_chunk() {
    let sandbox = start().await;
    let received = sandbox.post(CHAT, &fault("cut-stream"), STREAM).await;
    assert!(received.end.is_ok(), "an orderly close: {:?}", received.end);
    let (events, whole) = received.chunks();
    assert_eq!(
        (events.len(), whole),
        (11, false),
        "half of opening, 20 texts and closing"
    );
    let page = sandbox
        .ledger_until(|page| page.entries[0].outcome == Outcome::Aborted)
        .await;
    assert_eq!(page.charged_usd.to_string(), "0.042000");
}

#[tokio::test]
async fn cut_stream_of_a_plain_answer_is_shorter_than_its_length() {
    let sandbox = start().await;
    let headers = [
        ("x-sandbox-fault", "cut-stream"),
        ("x-sandbox-size", "1000"),
    ];
    let received = sandbox.post("/v1/echo", &headers, "").await;
    assert!(received.end.is_ok());
    assert_eq!(received.header("content-length"), Some("1000"));
    assert_eq!(received.raw_body().len(), 500);
}

#[tokio::test]
async fn hang_never_answers_and_ends_with_the_client() {
    let sandbox = start().await;
    let stream = sandbox.open("POST /v1/echo", &fault("hang"), b"x").await;
    sandbox.ledger_until(|page| page.executions == 1).await;
    sandbox.post("/v1/echo", &[], "").await.json();
    let first = &sandbox.ledger.snapshot().entries[0];
    assert_eq!(first.outcome, Outcome::Running, "while others are answered");
    drop(stream);
    sandbox
        .ledger_until(|page| page.entries[0].outcome == Outcome::Aborted)
        .await;
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_aborts_it_and_pays() {
    let sandbox = start().await;
    let headers = [("x-sandbox-chunks", "1000"), ("x-sandbox-interval", "1s")];
    let mut stream = sandbox
        .open(&format!("POST {CHAT}"), &headers, STREAM.as_bytes())
        .await;
    within_deadline(stream.read_u8()).await.unwrap();
    drop(stream);
    let page = sandbox
        .ledger_until(|page| page.entries[0].outcome == Outcome::Aborted)
        .await;
    assert_eq!(page.charged_usd.to_string(), "0.042000");
}

#[tokio::test]
async fn status_faults_speak_as_the_provider_does() {
    let sandbox = start().await;
    let gemini = "/v1beta/models/m:generateContent";
    for (path, fault_text, status, pointer, wanted) in [
        (
            CHAT,
            "status:429",
            429,
            "/error/code",
            json!("rate_limit_exceeded"),
        ),
        (
            "/v1/responses",
            "status:500",
            500,
            "/error/type",
            json!("server_error"),
        ),
        (
            CHAT,
            "status:401",
            401,
            "/error/code",
            json!("invalid_api_key"),
        ),
        (
            "/v1/messages",
            "status:529",
            529,
            "/error/type",
            json!("overloaded_error"),
        ),
        (
            "/v1/messages",
            "status:429",
            429,
            "/error/type",
            json!("rate_limit_error"),
        ),
        (
            gemini,
            "status:503",
            503,
            "/error/status",
            json!("UNAVAILABLE"),
        ),
        (gemini, "status:429", 429, "/error/code", json!(429)),
        (
            "/v1/charges",
            "status:429",
            429,
            "/error/code",
            json!("rate_limit"),
        ),
        (
            "/v1/customers",
            "status:500",
            500,
            "/error/type",
            json!("api_error"),
        ),
        ("/v1/echo", "status:418", 418, "/error/status", json!(418)),
    ] {
        let received = sandbox.post(path, &fault(fault_text), STREAM).await;
        assert_eq!(received.status(), status, "{path}");
        let answer = received.json();
        assert_eq!(answer.pointer(pointer), Some(&wanted), "{path}: {answer}");
        let retry_after = matches!(status, 429 | 503 | 529).then_some("1");
        assert_eq!(received.header("retry-after"), retry_after, "{path}");
    }
    let page = sandbox.ledger.snapshot();
    assert_eq!(
        (page.executions, page.charged_usd.micros),
        (10, 0),
        "errors count, and are free"
    );
    assert!(
        page.entries
            .iter()
            .all(|entry| entry.outcome == Outcome::Failed)
    );
}

#[tokio::test]
async fn a_status_below_400_is_put_on_the_usual_answer() {
    let sandbox = start().await;
    let created = sandbox.post("/v1/echo", &fault("status:201"), "x").await;
    assert_eq!(
        (created.status(), &created.json()["body"]),
        (201, &json!("x"))
    );
    let empty = sandbox.post("/v1/echo", &fault("status:204"), "x").await;
    assert_eq!((empty.status(), empty.raw_body()), (204, &b""[..]));
    assert!(
        sandbox
            .ledger
            .snapshot()
            .entries
            .iter()
            .all(|e| e.outcome == Outcome::Completed)
    );
}

#[tokio::test]
async fn a_delay_holds_the_head_back() {
    let sandbox = start().await;
    let _waiting = sandbox
        .open("POST /v1/echo", &[("x-sandbox-delay", "1h")], b"")
        .await;
    sandbox.ledger_until(|page| page.executions == 1).await;
    let prompt = sandbox
        .post("/v1/echo", &[("x-sandbox-delay", "1ms")], "")
        .await;
    assert_eq!(prompt.status(), 200);
    assert_eq!(
        sandbox.ledger.snapshot().entries[0].outcome,
        Outcome::Running
    );
}

#[tokio::test]
async fn times_spares_the_later_executions_of_the_tag() {
    let sandbox = start().await;
    let send = async |tag| {
        let headers = [
            ("x-sandbox-fault", "status:503"),
            ("x-sandbox-times", "2"),
            ("x-sandbox-tag", tag),
        ];
        sandbox.post("/v1/echo", &headers, "").await.status()
    };
    assert_eq!(
        [send("a").await, send("a").await, send("a").await],
        [503, 503, 200]
    );
    assert_eq!(send("b").await, 503, "another tag has its own count");
}

#[tokio::test]
async fn nonsense_is_refused_and_runs_nothing() {
    let sandbox = start().await;
    let received = sandbox
        .post(CHAT, &[("x-sandbox-fault", "explode")], "{}")
        .await;
    assert_eq!(received.status(), 400);
    let message = received.json()["error"]["message"].to_string();
    assert!(
        message.contains("x-sandbox-fault") && message.contains("cut-stream"),
        "{message}"
    );
    assert_eq!(sandbox.ledger.snapshot().executions, 0);
}
