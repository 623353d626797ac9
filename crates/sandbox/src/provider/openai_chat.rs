//! OpenAI chat completions: <https://platform.openai.com/docs/api-reference/chat>

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
    Reply::json(&json!({
        "id": id(job),
        "object": "chat.completion",
        "created": job.now_s(),
        "model": model(request),
        "choices": [{
            "index": 0,
            "message": {
                "role": "assistant",
                "content": job.pieces().concat(),
                "refusal": null,
                "annotations": [],
            },
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": usage(job),
        "service_tier": "default",
        "system_fingerprint": "fp_sandbox",
    }))
}

fn stream(job: &Job<'_>, request: &Value) -> Reply {
    let with_usage = request["stream_options"]["include_usage"] == true;
    let chunk = |choices: Value, usage: Value| {
        let mut chunk = json!({
            "id": id(job),
            "object": "chat.completion.chunk",
            "created": job.now_s(),
            "model": model(request),
            "choices": choices,
            "service_tier": "default",
            "system_fingerprint": "fp_sandbox",
        });
        if with_usage {
            // Null on every chunk but the last.
            chunk["usage"] = usage;
        }
        format!("data: {chunk}\n\n")
    };
    let delta = |delta: Value, finish_reason: Option<&str>| {
        let choice = json!({
            "index": 0,
            "delta": delta,
            "logprobs": null,
            "finish_reason": finish_reason,
        });
        chunk(json!([choice]), Value::Null)
    };

    let opening = delta(
        json!({ "role": "assistant", "content": "", "refusal": null }),
        None,
    );
    let pieces = job.pieces();
    let mut events: VecDeque<String> = pieces
        .into_iter()
        .map(|piece| delta(json!({ "content": piece }), None))
        .collect();
    let mut closing = vec![delta(json!({}), Some("stop"))];
    if with_usage {
        closing.push(chunk(json!([]), usage(job)));
    }
    closing.push("data: [DONE]\n\n".to_owned());

    events.push_front(opening);
    let mut frames: VecDeque<_> = events.into_iter().map(Into::into).collect();
    frames.push_back(together(closing));
    Reply::events(frames)
}

fn id(job: &Job<'_>) -> String {
    format!("chatcmpl-{}", job.id)
}

fn usage(job: &Job<'_>) -> Value {
    let (prompt, completion) = (job.prompt_tokens(), job.completion_tokens());
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": 0,
            "cache_write_tokens": 0,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    })
}
