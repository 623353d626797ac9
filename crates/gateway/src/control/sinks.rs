//! Those who are told what the books say: how it goes, what was given up, and sending it again.

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::StatusCode;
use onlyonce_core::OperationId;
use onlyonce_engine::Trouble;
use onlyonce_ledger::event;
use onlyonce_ledger::outbox::{Which, count_dead};
use onlyonce_store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Control;
use super::access::{Admin, May, Read};
use super::answer::Refusal;
use super::operations::not_json;
use super::query::{Named, show_moment};
use crate::sinks::OneSink;

/// Dead letters of a page, unless another number is asked for, and at most.
const PAGE: usize = 100;
const LARGEST_PAGE: usize = 1_000;

/// All sinks.
#[derive(Debug, Serialize)]
pub(super) struct SinkList {
    sinks: Vec<SinkView>,
}

/// How one goes.
#[derive(Debug, Serialize)]
struct SinkView {
    name: Box<str>,
    kind: &'static str,
    /// Whether this gateway is the one that delivers.
    delivers: bool,
    paused: bool,
    lag_ms: u64,
    pending: u64,
    delivered: u64,
    dead: u64,
    last_error: Option<ErrorView>,
}

#[derive(Debug, Serialize)]
struct ErrorView {
    at: String,
    why: Box<str>,
}

/// `GET /v1/sinks`.
pub(super) async fn list<S: Store>(desk: May<S, Read>) -> Result<Json<SinkList>, Refusal> {
    let control = desk.whole()?;
    let store = control.shared.engine.store();
    let now = store.now();
    let mut sinks = Vec::new();
    for sink in control.shared.sinks.iter() {
        let stats = sink.snapshot();
        let lag = stats.oldest.map(|oldest| now.since(oldest));
        let dead = count_dead(&**store, &sink.config.name).await;
        sinks.push(SinkView {
            name: sink.config.name.clone(),
            kind: sink.config.target.kind(),
            delivers: stats.holds,
            paused: stats.paused,
            lag_ms: u64::try_from(lag.unwrap_or_default().as_millis()).unwrap_or(u64::MAX),
            pending: stats.pending,
            delivered: stats.delivered,
            dead: dead.map_err(unreadable)?,
            last_error: stats.last_error.map(|(at, why)| ErrorView {
                at: show_moment(at),
                why,
            }),
        });
    }
    Ok(Json(SinkList { sinks }))
}

/// The query of `GET /v1/sinks/{name}/dead`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeadQuery {
    limit: Option<usize>,
    cursor: Option<OperationIdText>,
}

/// An operation's id as text.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
struct OperationIdText(OperationId);

impl TryFrom<String> for OperationIdText {
    type Error = onlyonce_core::identity::NotAnOperationId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

/// A page of dead letters, by operation.
#[derive(Debug, Serialize)]
pub(super) struct DeadPage {
    dead: Vec<DeadView>,
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct DeadView {
    entry: Value,
    since: String,
    tries: u32,
    why: Box<str>,
}

/// `GET /v1/sinks/{name}/dead`.
pub(super) async fn dead<S: Store>(
    desk: May<S, Read>,
    Named(name): Named,
    query: Result<Query<DeadQuery>, QueryRejection>,
) -> Result<Json<DeadPage>, Refusal> {
    let control = desk.whole()?;
    let sink = named(control, &name)?;
    let Query(query) =
        query.map_err(|error| Refusal::bad_request(error.body_text(), "use limit and cursor"))?;
    let limit = query.limit.unwrap_or(PAGE).clamp(1, LARGEST_PAGE);
    let after = query.cursor.map(|cursor| cursor.0);
    let store = control.shared.engine.store();
    let letters = store.dead(&sink.config.name, after, limit).await;
    let letters = letters.map_err(unreadable)?;
    let is_full = letters.len() == limit;
    let last = letters.last().filter(|_| is_full);
    Ok(Json(DeadPage {
        next_cursor: last.map(|letter| letter.entry.id.to_string()),
        dead: letters
            .into_iter()
            .map(|letter| DeadView {
                entry: event::json(&letter.entry),
                since: show_moment(letter.since),
                tries: letter.tries,
                why: letter.why,
            })
            .collect(),
    }))
}

/// The body of `POST /v1/sinks/{name}/resend`: which dead letters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResendBody {
    ids: Option<Vec<OperationIdText>>,
    all: Option<bool>,
}

/// What became of them.
#[derive(Debug, Serialize)]
pub(super) struct ResentView {
    delivered: Vec<String>,
    failed: Vec<FailedView>,
}

#[derive(Debug, Serialize)]
struct FailedView {
    id: String,
    why: String,
}

/// `POST /v1/sinks/{name}/resend`.
pub(super) async fn resend<S: Store>(
    desk: May<S, Admin>,
    Named(name): Named,
    body: Result<Json<ResendBody>, JsonRejection>,
) -> Result<Json<ResentView>, Refusal> {
    let control = desk.whole()?;
    let sink = named(control, &name)?;
    let Json(body) = body.map_err(not_json)?;
    let which = match (body.ids, body.all) {
        (Some(ids), None) => Which::These(ids.into_iter().map(|id| id.0).collect()),
        (None, Some(true)) => Which::All,
        _ => {
            return Err(Refusal::bad_request(
                "the body does not say which dead letters to send again",
                "send {\"ids\": [\"op_...\"]} or {\"all\": true}",
            ));
        }
    };
    let who = &*desk.access().name;
    tracing::info!(who, sink = name, "dead letters are sent again");
    let store = control.shared.engine.store();
    let resent = sink.resend(&**store, &which).await;
    let resent = resent.map_err(unreadable)?;
    let failed = resent.failed.into_iter();
    Ok(Json(ResentView {
        delivered: resent.delivered.iter().map(ToString::to_string).collect(),
        failed: failed
            .map(|(id, why)| FailedView {
                id: id.to_string(),
                why,
            })
            .collect(),
    }))
}

fn named<'a, S: Store>(control: &'a Control<S>, name: &str) -> Result<&'a OneSink, Refusal> {
    control.shared.sinks.named(name).ok_or_else(|| {
        Refusal::new(
            StatusCode::NOT_FOUND,
            format!("there is no sink {name}"),
            "list them at /v1/sinks",
        )
    })
}

fn unreadable(error: StoreError) -> Refusal {
    Trouble::from(error).into()
}
