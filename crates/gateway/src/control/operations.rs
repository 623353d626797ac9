//! Looking at operations, and settling those of which only a person can know.

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, StatusCode};
use onlyonce_core::{Head, HeaderBlock, StateName};
use onlyonce_engine::{Purge, Resolution};
use onlyonce_ledger::event;
use onlyonce_store::Store;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::access::{Admin, May, Read, Resolve};
use super::answer::Refusal;
use super::listing::{Listing, Row};
use super::operation::{OperationDetail, OperationView};
use super::query::{ListQuery, Named, moment, operation_id, state};

/// A page of operations, newest first.
#[derive(Debug, Serialize)]
pub(super) struct PageView {
    operations: Vec<OperationView>,
    /// What the books say of those whose record is gone, as sinks are told of them.
    gone: Vec<Value>,
    next_cursor: Option<String>,
}

impl From<&Listing> for PageView {
    fn from(listing: &Listing) -> Self {
        let mut view = Self {
            operations: Vec::with_capacity(listing.rows.len()),
            gone: Vec::new(),
            next_cursor: listing.next.clone(),
        };
        for row in &listing.rows {
            match row {
                Row::Kept(stored) => view.operations.push(OperationView::from(stored)),
                Row::Booked(entry) => view.gone.push(event::json(entry)),
            }
        }
        view
    }
}

/// `GET /v1/operations`.
pub(super) async fn list<S: Store>(
    desk: May<S, Read>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<PageView>, Refusal> {
    let Query(query) =
        query.map_err(|error| Refusal::bad_request(error.body_text(), ListQuery::FIELDS))?;
    let listing = Listing::of(&desk, query).await?;
    Ok(Json(PageView::from(&listing)))
}

/// `GET /v1/operations/{id}`.
pub(super) async fn show<S: Store>(
    desk: May<S, Read>,
    Named(id): Named,
) -> Result<Json<OperationDetail>, Refusal> {
    let operation = desk.operation(operation_id(&id)?).await?;
    Ok(Json(OperationDetail::new(&operation, desk.access())))
}

/// What a person found out about an operation.
#[derive(Debug, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum ResolveBody {
    Released {
        #[serde(default)]
        reason: String,
    },
    Completed {
        status: u16,
        #[serde(default)]
        headers: Vec<(String, String)>,
        #[serde(default)]
        body_base64: String,
        #[serde(default)]
        reason: String,
    },
}

/// `POST /v1/operations/{id}/resolve`.
pub(super) async fn resolve<S: Store>(
    desk: May<S, Resolve>,
    Named(id): Named,
    body: Result<Json<ResolveBody>, JsonRejection>,
) -> Result<Json<OperationDetail>, Refusal> {
    let id = operation_id(&id)?;
    let Json(body) = body.map_err(not_json)?;
    let (resolution, reason) = match body {
        ResolveBody::Released { reason } => (Resolution::Released, reason),
        ResolveBody::Completed {
            status,
            headers,
            body_base64,
            reason,
        } => {
            let body = STANDARD.decode(body_base64).map_err(|_| {
                Refusal::bad_request("body_base64 is not base64", "encode the body as RFC 4648")
            })?;
            let operation = desk.operation(id).await?;
            let resolution = Resolution::Completed {
                head: Head {
                    status: answer_status(status)?,
                    headers: answer_headers(&headers)?,
                },
                body: body.into(),
                trailers: HeaderBlock::default(),
                window: desk.window_of(&operation.stored.record.request.route),
            };
            (resolution, reason)
        }
    };
    let operation = desk.resolve(id, resolution, &reason).await?;
    Ok(Json(OperationDetail::new(&operation, desk.access())))
}

pub(super) fn answer_status(status: u16) -> Result<u16, Refusal> {
    if (200..=599).contains(&status) {
        return Ok(status);
    }
    Err(Refusal::bad_request(
        format!("status is {status}"),
        "send the status that the upstream answered, from 200 to 599",
    ))
}

/// Headers as they can stand in a recording: valid, and none that frames a message.
pub(super) fn answer_headers(headers: &[(String, String)]) -> Result<HeaderBlock, Refusal> {
    let mut block = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let refuse = |why: &str| {
            Refusal::bad_request(
                format!("the header {name:?} {why}"),
                "send only the headers that the caller is to see",
            )
        };
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| refuse("has no valid name"))?;
        let value = HeaderValue::from_str(value)
            .map_err(|_| refuse("has characters that no header has"))?;
        if FRAMING.contains(&name.as_str()) {
            return Err(refuse("belongs to a connection"));
        }
        block.push((name, value));
    }
    let pairs = block
        .iter()
        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    HeaderBlock::pack(pairs)
        .map_err(|_| Refusal::bad_request("a header is too long", "send headers below 64 KiB"))
}

/// The gateway frames messages itself (I17).
const FRAMING: [&str; 7] = [
    "connection",
    "content-length",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Which records to remove.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PurgeBody {
    tenant: Option<String>,
    state: Option<String>,
    before: Option<String>,
}

/// How many were removed.
#[derive(Debug, Serialize)]
pub(super) struct Purged {
    purged: u64,
}

/// `POST /v1/purge`.
pub(super) async fn purge<S: Store>(
    desk: May<S, Admin>,
    body: Result<Json<PurgeBody>, JsonRejection>,
) -> Result<Json<Purged>, Refusal> {
    let Json(body) = body.map_err(not_json)?;
    let state = body.state.as_deref().map(state).transpose()?;
    if state == Some(StateName::InFlight) {
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            "operations in flight are never removed",
            "wait for their outcome, or name another state",
        ));
    }
    let purge = Purge {
        tenant: body.tenant.map(Into::into),
        state,
        before: moment("before", body.before.as_deref(), desk.now())?,
    };
    let purged = desk.purge(purge).await?;
    Ok(Json(Purged { purged }))
}

pub(super) fn not_json(error: JsonRejection) -> Refusal {
    let (status, next) = match error.status() {
        status @ StatusCode::PAYLOAD_TOO_LARGE => {
            (status, "send a shorter body, or raise limits.response_body")
        }
        status => (
            match status {
                // A key that was used with another input is the only thing that this status says here.
                StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
                status => status,
            },
            "send content-type: application/json and the fields that /openapi.json lists",
        ),
    };
    Refusal::new(status, error.body_text(), next)
}
