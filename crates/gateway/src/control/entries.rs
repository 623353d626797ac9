//! The books' entries: one for each operation that completed.

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use onlyonce_ledger::event;
use onlyonce_store::Store;
use serde::Serialize;
use serde_json::Value;

use super::access::{May, Read};
use super::answer::Refusal;
use super::query::{EntriesQuery, show_position};

/// A page of entries, the last booked first.
#[derive(Debug, Serialize)]
pub(super) struct EntriesPage {
    /// Each as sinks are told of it.
    entries: Vec<Value>,
    next_cursor: Option<String>,
}

/// `GET /v1/ledger/entries`.
pub(super) async fn list<S: Store>(
    desk: May<S, Read>,
    query: Result<Query<EntriesQuery>, QueryRejection>,
) -> Result<Json<EntriesPage>, Refusal> {
    let Query(query) = query.map_err(|error| {
        let next = "use tenant, route, model, since, until, limit and cursor";
        Refusal::bad_request(error.body_text(), next)
    })?;
    let page = desk.entries(query.for_books(desk.now())?).await?;
    Ok(Json(EntriesPage {
        entries: page.entries.iter().map(event::json).collect(),
        next_cursor: page.next.map(show_position),
    }))
}
