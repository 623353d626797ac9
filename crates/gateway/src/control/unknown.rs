//! Operations of which nobody knows whether they ran: what is known, and how to find out the rest.

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use onlyonce_core::{Record, State, StateName, Timestamp, UnknownReason};
use onlyonce_store::{Store, Stored};
use serde::Serialize;

use super::access::{May, Read};
use super::answer::Refusal;
use super::listing;
use super::operation::OperationView;
use super::query::{ListQuery, show_moment};

/// A page of unknown operations, newest first.
#[derive(Debug, Serialize)]
pub(super) struct UnknownPage {
    unknown: Vec<UnknownView>,
    next_cursor: Option<String>,
}

/// An unknown operation, and what to do about it.
#[derive(Debug, Serialize)]
struct UnknownView {
    operation: OperationView,
    since: Option<String>,
    advice: Vec<String>,
}

impl From<&Stored> for UnknownView {
    fn from(stored: &Stored) -> Self {
        Self {
            operation: OperationView::from(stored),
            since: since(&stored.record).map(show_moment),
            advice: advice(&stored.record),
        }
    }
}

/// `GET /v1/unknown`.
pub(super) async fn list<S: Store>(
    desk: May<S, Read>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<UnknownPage>, Refusal> {
    let Query(query) = query.map_err(|error| {
        let next = "use key, tenant, model, since, until, limit and cursor";
        Refusal::bad_request(error.body_text(), next)
    })?;
    let model = query.model.clone();
    let mut query = query.for_store(desk.now())?;
    query.state = Some(StateName::Unknown);
    let page = listing::records(&desk, query, model.as_deref()).await?;
    Ok(Json(UnknownPage {
        unknown: page.records.iter().map(UnknownView::from).collect(),
        next_cursor: page.next.map(|id| id.to_string()),
    }))
}

/// Since when nobody knows.
pub(super) fn since(record: &Record) -> Option<Timestamp> {
    match &record.state {
        State::Unknown { since, .. } => Some(*since),
        _ => None,
    }
}

/// What to do about an unknown operation, step by step; nothing about any other.
pub(super) fn advice(record: &Record) -> Vec<String> {
    let State::Unknown { reason, .. } = &record.state else {
        return Vec::new();
    };
    if let UnknownReason::StepUnknown | UnknownReason::Unfinished = reason {
        return advice_on_steps(*reason, record);
    }
    let line = &record.request;
    let told = record.metered.as_deref();
    let id = told.map_or("", |told| &told.response_id);
    let look = if id.is_empty() {
        format!(
            "Look in the upstream's own list or log for a {} {} that came at {}.",
            line.method,
            line.path,
            show_moment(record.claimed_at)
        )
    } else {
        format!("Look up {id} at the upstream: its answer had begun, so it did start.")
    };
    let ran = match reason {
        UnknownReason::Unreadable => {
            "It did run, and its recording cannot be read any more: settle it as completed with what \
             the upstream shows."
        }
        _ => {
            "If it ran, settle it as completed with the answer that the upstream shows: every retry \
             gets that answer."
        }
    };
    vec![
        look,
        ran.to_owned(),
        "If the upstream has no trace of it, settle it as released: the next retry runs it."
            .to_owned(),
        "Until then a retry with this key is refused and nothing runs, unless its route resends."
            .to_owned(),
    ]
}

/// What to do about an operation that is made of steps: nothing, but about its steps.
fn advice_on_steps(reason: UnknownReason, record: &Record) -> Vec<String> {
    let first = match reason {
        UnknownReason::StepUnknown => format!(
            "Settle the step that is unknown, and not this operation: it is listed with the method STEP, and \
             its key begins with {}/.",
            record.id
        ),
        _ => "There is nothing to find out: what its steps have done is recorded.".to_owned(),
    };
    vec![
        first,
        "A retry with its key continues it after that, or a completer does, where its rules say so."
            .to_owned(),
        "Do not settle it as released: once it is forgotten, its steps would be done again.".to_owned(),
    ]
}
