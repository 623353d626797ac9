//! Each endpoint answers in its provider's shape.

use serde_json::{Value, json};

use crate::wire::{Received, start};

const FAST: (&str, &str) = ("x-sandbox-interval", "0ms");
const THREE: [(&str, &str); 2] = [("x-sandbox-chunks", "3"), FAST];

/// What three pieces say in the first execution.
const TEXT: &str = "Execution 1: every answer";

fn data(received: &Received) -> Vec<Value> {
    let events = received.events();
    events
        .iter()
        .map(|(_, data)| serde_json::from_str(data).unwrap())
        .collect()
}

#[tokio::test]
async fn chat_completions() {
    let sandbox = start().await;
    let body = json!({ "model": "gpt-x", "messages": [{ "role": "user", "content": "hi" }] });
    let received = sandbox
        .post("/v1/chat/completions", &THREE, &body.to_string())
        .await;
    assert_eq!(received.status(), 200);
    assert!(received.header("x-request-id").is_some());
    assert_eq!(received.header("x-sandbox-execution"), Some("1"));
    let answer = received.json();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "gpt-x");
    assert_eq!(answer["choices"][0]["message"]["content"], TEXT);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(answer["usage"]["total_tokens"], prompt + 3);
}

#[tokio::test]
async fn chat_completions_streamed_with_usage() {
    let sandbox = start().await;
    let body = r#"{"stream": true, "stream_options": {"include_usage": true}}"#;
    let received = sandbox.post("/v1/chat/completions", &THREE, body).await;
    let mut events = received.events();
    assert_eq!(events.pop(), Some((String::new(), "[DONE]".to_owned())));
    let chunks: Vec<Value> = events
        .iter()
        .map(|(_, data)| serde_json::from_str(data).unwrap())
        .collect();
    assert_eq!(chunks.len(), 1 + 3 + 1 + 1);
    assert!(
        chunks
            .iter()
            .all(|c| c["object"] == "chat.completion.chunk" && c["id"] == chunks[0]["id"])
    );
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, TEXT);
    assert_eq!(chunks[4]["choices"][0]["finish_reason"], "stop");
    assert!(
        chunks[..5]
            .iter()
            .all(|c| c.as_object().unwrap().get("usage") == Some(&Value::Null))
    );
    assert_eq!(chunks[5]["choices"], json!([]));
    assert_eq!(chunks[5]["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn chat_completions_streamed_without_usage() {
    let sandbox = start().await;
    let received = sandbox
        .post("/v1/chat/completions", &[FAST], r#"{"stream": true}"#)
        .await;
    let events = received.events();
    assert_eq!(events.len(), 1 + 20 + 1 + 1, "20 text events by default");
    assert!(events.iter().all(|(_, data)| !data.contains("usage")));
}

#[tokio::test]
async fn responses_and_their_look_up() {
    let sandbox = start().await;
    let received = sandbox
        .post("/v1/responses", &THREE, r#"{"model":"gpt-x","input":"hi"}"#)
        .await;
    let answer = received.json();
    assert_eq!(answer["object"], "response");
    assert_eq!(answer["status"], "completed");
    assert_eq!(answer["output"][0]["content"][0]["text"], TEXT);
    assert_eq!(answer["usage"]["output_tokens"], 3);

    let id = answer["id"].as_str().unwrap();
    let again = sandbox.get(&format!("/v1/responses/{id}")).await;
    assert_eq!(again.json(), answer);
    let missing = sandbox.get("/v1/responses/resp_missing").await;
    assert_eq!(missing.status(), 404);
    assert_eq!(missing.json()["error"]["type"], "invalid_request_error");
    assert_eq!(sandbox.ledger.snapshot().executions, 1, "reads run nothing");
}

#[tokio::test]
async fn responses_streamed() {
    let sandbox = start().await;
    let received = sandbox
        .post("/v1/responses", &THREE, r#"{"stream":true}"#)
        .await;
    let names: Vec<String> = received
        .events()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let delta = "response.output_text.delta";
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            delta,
            delta,
            delta,
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let data = data(&received);
    for (i, event) in data.iter().enumerate() {
        assert_eq!(event["sequence_number"], i);
        assert_eq!(event["type"], names[i]);
    }
    assert_eq!(data[0]["response"]["status"], "in_progress");
    assert_eq!(data[0]["response"]["usage"], Value::Null);
    let last = &data[10]["response"];
    assert_eq!(last["id"], data[0]["response"]["id"]);
    assert_eq!(last["output"][0]["content"][0]["text"], TEXT);
    assert_eq!(last["usage"]["output_tokens"], 3);
}

#[tokio::test]
async fn responses_in_the_background_finish_later() {
    let sandbox = start().await;
    let slow = [("x-sandbox-chunks", "1"), ("x-sandbox-interval", "1h")];
    let queued = sandbox
        .post("/v1/responses", &slow, r#"{"background":true}"#)
        .await
        .json();
    assert_eq!(
        (&queued["status"], &queued["output"]),
        (&json!("queued"), &json!([]))
    );
    let id = queued["id"].as_str().unwrap();
    let running = sandbox.get(&format!("/v1/responses/{id}")).await.json();
    assert_eq!(running["status"], "in_progress");

    let quick = sandbox
        .post("/v1/responses", &[FAST], r#"{"background":true}"#)
        .await
        .json();
    let id = quick["id"].as_str().unwrap();
    let done = sandbox.get(&format!("/v1/responses/{id}")).await.json();
    assert_eq!(done["status"], "completed");
    assert!(
        done["output"][0]["content"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with("Execution 2:")
    );
}

#[tokio::test]
async fn messages() {
    let sandbox = start().await;
    let body = r#"{"model":"claude-x","max_tokens":9,"messages":[]}"#;
    let received = sandbox.post("/v1/messages", &THREE, body).await;
    assert!(received.header("request-id").unwrap().starts_with("req_"));
    let answer = received.json();
    assert_eq!(answer["type"], "message");
    assert_eq!(
        answer["content"][0],
        json!({ "type": "text", "text": TEXT })
    );
    assert_eq!(answer["stop_reason"], "end_turn");
    assert_eq!(answer["usage"]["output_tokens"], 3);
}

#[tokio::test]
async fn messages_streamed() {
    let sandbox = start().await;
    let received = sandbox
        .post("/v1/messages", &THREE, r#"{"stream":true}"#)
        .await;
    let names: Vec<String> = received
        .events()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let delta = "content_block_delta";
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "ping",
            delta,
            delta,
            delta,
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    let data = data(&received);
    assert!(
        data.iter()
            .zip(&names)
            .all(|(data, name)| data["type"] == *name)
    );
    assert_eq!(data[0]["message"]["usage"]["output_tokens"], 1);
    let text: String = data
        .iter()
        .filter_map(|event| event["delta"]["text"].as_str())
        .collect();
    assert_eq!(text, TEXT);
    assert_eq!(data[7]["delta"]["stop_reason"], "end_turn");
    assert_eq!(data[7]["usage"]["output_tokens"], 3);
}

#[tokio::test]
async fn gemini() {
    let sandbox = start().await;
    let path = "/v1beta/models/gemini-x:generateContent";
    let answer = sandbox
        .post(path, &THREE, r#"{"contents":[]}"#)
        .await
        .json();
    assert_eq!(answer["candidates"][0]["content"]["parts"][0]["text"], TEXT);
    assert_eq!(answer["candidates"][0]["finishReason"], "STOP");
    assert_eq!(answer["modelVersion"], "gemini-x");
    assert_eq!(answer["usageMetadata"]["candidatesTokenCount"], 3);
}

#[tokio::test]
async fn gemini_streamed_as_events_or_as_an_array() {
    let sandbox = start().await;
    let path = "/v1beta/models/gemini-x:streamGenerateContent";
    let text_of = |parts: &[Value]| -> String {
        parts
            .iter()
            .map(|part| {
                part["candidates"][0]["content"]["parts"][0]["text"]
                    .as_str()
                    .unwrap()
            })
            .collect()
    };
    let events = sandbox.post(&format!("{path}?alt=sse"), &THREE, "{}").await;
    let parts = data(&events);
    assert_eq!((parts.len(), text_of(&parts).as_str()), (3, TEXT));
    assert_eq!(parts[1]["candidates"][0].get("finishReason"), None);
    assert_eq!(parts[2]["candidates"][0]["finishReason"], "STOP");
    assert_eq!(parts[2]["usageMetadata"]["candidatesTokenCount"], 3);

    let array = sandbox.post(path, &THREE, "{}").await.json();
    let parts = array.as_array().unwrap();
    assert_eq!(text_of(parts), TEXT.replace('1', "2"));
}

#[tokio::test]
async fn stripe_charges() {
    let sandbox = start().await;
    let form = "amount=1999&currency=eur&source=tok_visa&metadata[order]=6735&metadata[a%20b]=c+d";
    let received = sandbox.post("/v1/charges", &[], form).await;
    assert!(received.header("request-id").unwrap().starts_with("req_"));
    let charge = received.json();
    assert_eq!(charge["object"], "charge");
    assert!(charge["id"].as_str().unwrap().starts_with("ch_"));
    assert_eq!(
        (&charge["amount"], &charge["currency"]),
        (&json!(1999), &json!("eur"))
    );
    assert_eq!(charge["metadata"], json!({ "order": "6735", "a b": "c d" }));
    assert_eq!(charge["status"], "succeeded");
}

#[tokio::test]
async fn stripe_refusals_cost_nothing() {
    let sandbox = start().await;
    let declined = sandbox
        .post("/v1/charges", &[], "amount=5&source=tok_chargeDeclined")
        .await;
    assert_eq!(declined.status(), 402);
    assert_eq!(declined.json()["error"]["code"], "card_declined");
    let invalid = sandbox.post("/v1/charges", &[], "amount=much").await;
    assert_eq!(invalid.status(), 400);
    assert_eq!(invalid.json()["error"]["param"], "amount");
    let page = sandbox.ledger.snapshot();
    assert_eq!((page.executions, page.charged_usd.micros), (2, 0));
}

#[tokio::test]
async fn stripe_payment_intents_and_customers() {
    let sandbox = start().await;
    let form = "amount=700&payment_method=pm_card_visa&confirm=true";
    let intent = sandbox.post("/v1/payment_intents", &[], form).await.json();
    assert_eq!(intent["object"], "payment_intent");
    assert_eq!(
        (&intent["status"], &intent["amount_received"]),
        (&json!("succeeded"), &json!(700))
    );
    let waiting = sandbox
        .post("/v1/payment_intents", &[], "amount=700")
        .await
        .json();
    assert_eq!(waiting["status"], "requires_payment_method");

    let one = sandbox
        .post("/v1/customers", &[], "email=a%40b.example")
        .await
        .json();
    let two = sandbox
        .post("/v1/customers", &[], "email=a%40b.example")
        .await
        .json();
    assert_eq!(one["email"], "a@b.example");
    assert_ne!(one["id"], two["id"]);
}

#[tokio::test]
async fn echo() {
    let sandbox = start().await;
    let received = sandbox
        .post("/v1/echo", &[("content-type", "text/plain")], "hallo")
        .await;
    assert_eq!(
        received.body(),
        r#"{"execution":1,"content_type":"text/plain","body":"hallo"}"#
    );
    let binary = sandbox
        .send("POST /v1/echo", &[], &[0xff, 0x00])
        .await
        .json();
    assert_eq!(binary["body_base64"], "/wA=");
    let sized = sandbox
        .post("/v1/echo", &[("x-sandbox-size", "1024")], "")
        .await;
    assert_eq!(sized.body().len(), 1024);
    assert_eq!(sized.json()["execution"], 3);
}

#[tokio::test]
async fn models_in_two_shapes() {
    let sandbox = start().await;
    let openai = sandbox.get("/v1/models").await.json();
    assert_eq!(openai["object"], "list");
    let anthropic = sandbox
        .send(
            "GET /v1/models",
            &[("anthropic-version", "2023-06-01")],
            b"",
        )
        .await;
    assert_eq!(anthropic.json()["data"][0]["type"], "model");
    assert_eq!(sandbox.ledger.snapshot().executions, 0);
}

#[tokio::test]
async fn what_is_not_there_or_not_json_is_refused_in_the_providers_shape() {
    let sandbox = start().await;
    let missing = sandbox.post("/v1/nothing", &[], "{}").await;
    assert_eq!(missing.status(), 404);
    assert_eq!(missing.json()["error"]["type"], "invalid_request_error");
    assert_eq!(sandbox.ledger.snapshot().executions, 0);
    let chat = sandbox.post("/v1/chat/completions", &[], "hello").await;
    assert_eq!(
        (chat.status(), &chat.json()["error"]["code"]),
        (400, &Value::Null)
    );
    let messages = sandbox.post("/v1/messages", &[], "[]").await;
    assert_eq!(messages.json()["error"]["type"], "invalid_request_error");
}

#[tokio::test]
async fn http_2_with_prior_knowledge_is_understood() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let sandbox = start().await;
    let mut stream = tokio::net::TcpStream::connect(sandbox.addr).await.unwrap();
    // The preface and an empty SETTINGS frame: RFC 9113, section 3.4.
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut head = [0; 9];
    crate::wire::within_deadline(stream.read_exact(&mut head))
        .await
        .unwrap();
    assert_eq!(head[3], 4, "a SETTINGS frame");
}
