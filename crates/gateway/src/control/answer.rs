//! Refusals of the control listener, as problem documents (RFC 9457).

use std::sync::LazyLock;

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, header::RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use onlyonce_core::{Epoch, OperationId};
use onlyonce_engine::{ResolveError, Seldom, Ticket, Trouble, WorkError};
use onlyonce_http::{Place, Problem};
use onlyonce_tower::shell::telling::{log_trouble, problem_of_trouble};
use serde_json::json;

/// Why the control listener does not do what it is asked.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    detail: Box<str>,
    next: Box<str>,
    /// Its kind, where there is a page about that.
    page: Option<&'static str>,
    title: Option<&'static str>,
    /// When to come again, in seconds.
    retry_after: Option<u64>,
    operation: Option<OperationId>,
    /// That of the operation's claim.
    epoch: Option<Epoch>,
}

impl Refusal {
    pub(super) fn new(
        status: StatusCode,
        detail: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self {
            status,
            detail: detail.into().into_boxed_str(),
            next: next.into().into_boxed_str(),
            page: None,
            title: None,
            retry_after: None,
            operation: None,
            epoch: None,
        }
    }

    /// What callers of a route are told too, with the type that they know it by, in the words of this place.
    pub(super) fn problem(status: StatusCode, problem: &Problem, place: Place) -> Self {
        let page = problem.page();
        Self {
            page: Some(page.name),
            title: Some(page.title),
            retry_after: problem.retry_after().map(|wait| wait.as_secs().max(1)),
            ..Self::new(status, problem.detail(place), problem.next(place))
        }
    }

    /// It is about this operation, which who asks may know.
    pub(super) fn about(self, operation: OperationId) -> Self {
        Self {
            operation: Some(operation),
            ..self
        }
    }

    /// It is about what was answered under this ticket, which who asks may know.
    pub(super) fn about_ticket(self, ticket: &Ticket) -> Self {
        Self {
            epoch: Some(ticket.claim),
            ..self.about(ticket.id)
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
        let reason = self.status.canonical_reason().unwrap_or("Refused");
        let kind = self.page.map(|name| format!("/problems/{name}"));
        let mut body = json!({
            "type": kind.as_deref().unwrap_or("about:blank"),
            "title": self.title.unwrap_or(reason),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "next": self.next,
        });
        if let Some(operation) = self.operation {
            body["operation"] = operation.to_string().into();
        }
        if let Some(epoch) = self.epoch {
            body["epoch"] = epoch.number().into();
        }
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(CONTENT_TYPE, kind);
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, wait.into());
        }
        response
    }
}

/// Notes why requests are refused.
static STORE_DOWN: LazyLock<Seldom> = LazyLock::new(Seldom::default);

impl From<Trouble> for Refusal {
    fn from(trouble: Trouble) -> Self {
        // What the store itself has said may name places that a worker has no business to know.
        let detail = match &trouble {
            Trouble::Unavailable(_) => "the store does not answer".to_owned(),
            Trouble::InDoubt(_) => "the store has not said whether that was done".to_owned(),
            Trouble::Full(_) => problem_of_trouble(&trouble, |name| (name, None))
                .detail(Place::Work)
                .into(),
            Trouble::OverLimit(_) | Trouble::ShuttingDown => trouble.to_string(),
        };
        log_trouble(&STORE_DOWN, &trouble, "look at the store's server or disk");
        let (status, next) = match &trouble {
            Trouble::Unavailable(_) | Trouble::InDoubt(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "look at the gateway's log, then ask again",
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
        Self::new(status, detail, next)
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

impl From<WorkError> for Refusal {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::NotFound => Self::new(
                StatusCode::NOT_FOUND,
                "there is no such operation",
                "begin anew with its key: its record is gone, or never was",
            ),
            WorkError::Fenced => {
                Self::problem(StatusCode::CONFLICT, &Problem::ClaimLost, Place::Work)
            }
            WorkError::Settled(state) => {
                let problem = Problem::AlreadySettled(state);
                Self::problem(StatusCode::CONFLICT, &problem, Place::Work)
            }
            WorkError::OverLimit { limit } => Self::too_large(limit),
            WorkError::Trouble(trouble) => trouble.into(),
        }
    }
}

impl Refusal {
    /// A result that is over the limit: the claim stands.
    pub(super) fn too_large(limit: u64) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the result is larger than limits.work_result, {limit} bytes"),
            "nothing is lost: keep the result where it belongs, and complete with where that is",
        )
    }
}
