//! Anthropic messages: <https://docs.anthropic.com/en/api/messages>

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::{Job, Refusal, Reply, model, together};

pub(crate) fn reply(job: &Job<'_>) -> Result<Reply, Refusal> {
    let request = job.json()?;
    Ok(if request["stream"] == true {
        stream(job, &request)
    } else {
        whole(job, &request)
    })
}

fn whole(job: &Job<'_>, request: &Value) -> Reply {
    let content = json!([{ "type": "text", "text": job.pieces().concat() }]);
    Reply::json(&message(
        job,
        request,
        content,
        Some("end_turn"),
        job.completion_tokens(),
    ))
}

fn stream(job: &Job<'_>, request: &Value) -> Reply {
    let pieces = job.pieces();
    let mut frames = VecDeque::with_capacity(pieces.len() + 2);
    frames.push_back(together([
        event(
            "message_start",
            json!({ "message": message(job, request, json!([]), None, 1) }),
        ),
        event(
            "content_block_start",
            json!({ "index": 0, "content_block": { "type": "text", "text": "" } }),
        ),
        event("ping", json!({})),
    ]));
    for piece in pieces {
        let delta = json!({ "index": 0, "delta": { "type": "text_delta", "text": piece } });
        frames.push_back(event("content_block_delta", delta).into());
    }
    frames.push_back(together([
        event("content_block_stop", json!({ "index": 0 })),
        event(
            "message_delta",
            json!({
                "delta": { "stop_reason": "end_turn", "stop_sequence": null },
                // Cumulative: it repeats what message_start said of the input.
                "usage": {
                    "input_tokens": job.prompt_tokens(),
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0,
                    "output_tokens": job.completion_tokens(),
                },
            }),
        ),
        event("message_stop", json!({})),
    ]));
    Reply::events(frames)
}

fn message(
    job: &Job<'_>,
    request: &Value,
    content: Value,
    stop_reason: Option<&str>,
    output_tokens: u64,
) -> Value {
    json!({
        "id": format!("msg_{}", job.id),
        "type": "message",
        "role": "assistant",
        "model": model(request),
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": null,
        "usage": {
            "input_tokens": job.prompt_tokens(),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": { "ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0 },
            "output_tokens": output_tokens,
            "service_tier": "standard",
        },
    })
}

fn event(kind: &str, mut data: Value) -> String {
    data["type"] = kind.into();
    format!("event: {kind}\ndata: {data}\n\n")
}
