//! Refusals of the control listener, as problem documents (RFC 9457).

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use onlyonce_engine::{ResolveError, Trouble};
use serde_json::json;

/// Why the control listener does not do what it is asked.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    detail: String,
    next: String,
}

impl Refusal {
    pub(super) fn new(
        status: StatusCode,
        detail: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self {
            status,
            detail: detail.into(),
            next: next.into(),
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// What was wrong.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// What to do.
    pub(super) fn next(&self) -> &str {
        &self.next
    }

    pub(super) fn bad_request(detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail, next)
    }

    pub(super) fn no_such_operation(id: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("there is no operation {id}"),
            "list operations at /v1/operations; a record is gone after its window",
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Refused"),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "next": self.next,
        });
        let mut response = (self.status, Json(body)).into_response();
        response.headers_mut().insert(
            CONTENT_TYPE,
            axum::http::HeaderValue::from_static("application/problem+json"),
        );
        response
    }
}

impl From<Trouble> for Refusal {
    fn from(trouble: Trouble) -> Self {
        let (status, next) = match &trouble {
            Trouble::Unavailable(_) | Trouble::InDoubt(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "look at /readyz and at the gateway's log, then ask again",
            ),
            Trouble::Full(_) => (
                StatusCode::INSUFFICIENT_STORAGE,
                "make room on the disk, or raise store.max_bytes; then ask again",
            ),
            Trouble::OverLimit(_) => (
                StatusCode::TOO_MANY_REQUESTS,
                "wait, or raise the limit in the configuration",
            ),
            Trouble::ShuttingDown => (
                StatusCode::SERVICE_UNAVAILABLE,
                "ask the gateway that comes after this one",
            ),
        };
        Self::new(status, trouble.to_string(), next)
    }
}

impl From<ResolveError> for Refusal {
    fn from(error: ResolveError) -> Self {
        let (status, next) = match &error {
            ResolveError::NotFound => (
                StatusCode::NOT_FOUND,
                "list operations at /v1/operations; a record is gone after its window",
            ),
            ResolveError::NotUnknown(_) => (
                StatusCode::CONFLICT,
                "nothing is to be done: its outcome is known, or soon will be",
            ),
            ResolveError::Changed => (StatusCode::CONFLICT, "look at it again, then decide again"),
            ResolveError::OverLimit { .. } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "send a shorter body, or raise limits.response_body",
            ),
            ResolveError::Trouble(trouble) => return trouble.clone().into(),
        };
        Self::new(status, error.to_string(), next)
    }
}
