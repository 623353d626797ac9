//! Errors as each provider writes them.

use serde_json::{Value, json};

use super::{Family, Refusal};

pub(super) fn document(family: Family, refusal: &Refusal, id: &str) -> Value {
    match family {
        Family::OpenAi => open_ai(refusal),
        Family::Anthropic => anthropic(refusal, id),
        Family::Gemini => gemini(refusal),
        Family::Stripe => stripe(refusal),
        Family::Plain => json!({
            "error": { "status": refusal.status.as_u16(), "message": refusal.message },
        }),
    }
}

/// <https://platform.openai.com/docs/guides/error-codes>
fn open_ai(refusal: &Refusal) -> Value {
    let (kind, code) = match refusal.status.as_u16() {
        401 => ("invalid_request_error", Some("invalid_api_key")),
        429 => ("requests", Some("rate_limit_exceeded")),
        500.. => ("server_error", None),
        _ => ("invalid_request_error", None),
    };
    json!({
        "error": {
            "message": refusal.message,
            "type": kind,
            "param": refusal.param,
            "code": refusal.code.or(code),
        },
    })
}

/// <https://docs.anthropic.com/en/api/errors>
fn anthropic(refusal: &Refusal, id: &str) -> Value {
    let kind = match refusal.status.as_u16() {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    };
    json!({
        "type": "error",
        "error": { "type": kind, "message": refusal.message },
        "request_id": format!("req_{id}"),
    })
}

/// <https://cloud.google.com/apis/design/errors>
fn gemini(refusal: &Refusal) -> Value {
    let status = match refusal.status.as_u16() {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        409 => "ABORTED",
        429 => "RESOURCE_EXHAUSTED",
        499 => "CANCELLED",
        501 => "UNIMPLEMENTED",
        503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        500.. => "INTERNAL",
        _ => "INVALID_ARGUMENT",
    };
    json!({
        "error": {
            "code": refusal.status.as_u16(),
            "message": refusal.message,
            "status": status,
        },
    })
}

/// <https://docs.stripe.com/api/errors>
fn stripe(refusal: &Refusal) -> Value {
    let (kind, code) = match refusal.status.as_u16() {
        402 => ("card_error", Some("card_declined")),
        409 => ("idempotency_error", Some("idempotency_key_in_use")),
        429 => ("invalid_request_error", Some("rate_limit")),
        500.. => ("api_error", None),
        _ => ("invalid_request_error", None),
    };
    let mut error = json!({ "type": kind, "message": refusal.message });
    if let Some(code) = refusal.code.or(code) {
        error["code"] = code.into();
        error["doc_url"] = format!(
            "https://stripe.com/docs/error-codes/{}",
            code.replace('_', "-")
        )
        .into();
    }
    if let Some(param) = refusal.param {
        error["param"] = param.into();
    }
    json!({ "error": error })
}
