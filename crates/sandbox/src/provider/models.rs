//! The list of models.

use serde_json::json;

use super::{Family, Job, Reply};

const MODELS: [&str; 2] = ["sandbox-1", "sandbox-1-mini"];

pub(crate) fn reply(family: Family, job: &Job<'_>) -> Reply {
    if family == Family::Anthropic {
        return Reply::json(&json!({
            "data": MODELS.map(|id| json!({
                "type": "model",
                "id": id,
                "display_name": id,
                "created_at": "2025-01-01T00:00:00Z",
            })),
            "has_more": false,
            "first_id": MODELS[0],
            "last_id": MODELS[MODELS.len() - 1],
        }));
    }
    Reply::json(&json!({
        "object": "list",
        "data": MODELS.map(|id| json!({
            "id": id,
            "object": "model",
            "created": job.now_s(),
            "owned_by": "sandbox",
        })),
    }))
}
