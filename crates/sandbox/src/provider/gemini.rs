//! Gemini: <https://ai.google.dev/api/generate-content>

use std::collections::VecDeque;

use bytes::Bytes;
use http::HeaderValue;
use serde_json::{Value, json};

use super::{Content, Job, Refusal, Reply};

/// The `{model}:{call}` of a path; SDKs use the beta and the stable version.
pub(crate) fn path(path: &str) -> Option<&str> {
    path.strip_prefix("/v1beta/models/")
        .or_else(|| path.strip_prefix("/v1/models/"))
        .filter(|rest| rest.contains(':'))
}

pub(crate) fn reply(job: &Job<'_>, model: &str) -> Result<Reply, Refusal> {
    job.json()?;
    let text = job.pieces().concat();
    Ok(Reply::json(&part(
        job,
        model,
        &text,
        job.completion_tokens(),
        true,
    )))
}

/// As server-sent events, or, without `alt=sse`, as a JSON array that grows.
pub(crate) fn stream(job: &Job<'_>, model: &str, sse: bool) -> Result<Reply, Refusal> {
    job.json()?;
    let pieces = job.pieces();
    let last = pieces.len() - 1;
    let parts = pieces
        .iter()
        .enumerate()
        .map(|(i, piece)| part(job, model, piece, i as u64 + 1, i == last).to_string());
    if sse {
        // Google ends its lines with CR LF.
        let events = parts.map(|part| Bytes::from(format!("data: {part}\r\n\r\n")));
        return Ok(Reply::events(events.collect()));
    }
    let elements: VecDeque<Bytes> = parts
        .enumerate()
        .map(|(i, part)| {
            let before = if i == 0 { "[" } else { ",\r\n" };
            let after = if i == last { "\n]\n" } else { "\n" };
            Bytes::from(format!("{before}{part}{after}"))
        })
        .collect();
    Ok(Reply {
        content_type: HeaderValue::from_static("application/json; charset=UTF-8"),
        content: Content::Events(elements),
    })
}

fn part(job: &Job<'_>, model: &str, text: &str, tokens_so_far: u64, last: bool) -> Value {
    let mut candidate = json!({
        "content": { "parts": [{ "text": text }], "role": "model" },
        "index": 0,
    });
    if last {
        candidate["finishReason"] = "STOP".into();
    }
    let prompt = job.prompt_tokens();
    json!({
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": prompt,
            "candidatesTokenCount": tokens_so_far,
            "totalTokenCount": prompt + tokens_so_far,
            "promptTokensDetails": [{ "modality": "TEXT", "tokenCount": prompt }],
        },
        "modelVersion": model,
        "responseId": job.id,
    })
}
