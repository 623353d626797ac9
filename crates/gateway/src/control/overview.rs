//! What is going on, at a glance.

use axum::Json;
use onlyonce_core::{StateName, Timestamp};
use onlyonce_http::Status;
use onlyonce_store::{Page, Query, Store};
use serde::Serialize;

use super::access::{May, Read};
use super::answer::Refusal;
use super::desk::Desk;
use super::operation::OperationView;
use super::query::show_moment;
use crate::metrics::Answer;

/// Operations of one state are counted so far: a store keeps no sums.
pub(super) const COUNTED: usize = 100;
/// The newest operations that are shown.
const LATEST: usize = 10;
/// The newest unknown ones.
pub(super) const UNKNOWN: usize = 5;

/// What is going on.
pub(super) struct Overview {
    pub(super) at: Timestamp,
    pub(super) unknown: Page,
    pub(super) in_flight: Page,
    pub(super) latest: Page,
    /// What this gateway counted, where it is not one tenant only that is looked at.
    pub(super) since_start: Option<SinceStart>,
}

/// How this gateway has answered requests since its start.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct SinceStart {
    #[serde(serialize_with = "moment")]
    pub(super) started_at: Timestamp,
    pub(super) executed: u64,
    pub(super) replayed: u64,
    pub(super) joined: u64,
    pub(super) released: u64,
    pub(super) refused: u64,
    pub(super) passed: u64,
}

pub(super) fn moment<S: serde::Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&show_moment(*at))
}

impl Overview {
    /// As `desk` may see it.
    pub(super) async fn of<S: Store>(desk: &Desk<S>) -> Result<Self, Refusal> {
        let list = async |state, limit| {
            let query = Query {
                state,
                limit,
                ..Query::default()
            };
            desk.list(query).await
        };
        Ok(Self {
            at: desk.now(),
            unknown: list(Some(StateName::Unknown), COUNTED).await?,
            in_flight: list(Some(StateName::InFlight), COUNTED).await?,
            latest: list(None, LATEST).await?,
            since_start: desk.whole().ok().map(|control| {
                let total = |answer| control.shared.metrics.total(answer);
                SinceStart {
                    started_at: control.started,
                    executed: total(Answer::Marked(Status::Executed)),
                    replayed: total(Answer::Marked(Status::Replayed)),
                    joined: total(Answer::Marked(Status::Joined)),
                    released: total(Answer::Marked(Status::Released)),
                    refused: total(Answer::Refused),
                    passed: total(Answer::Passed),
                }
            }),
        })
    }
}

/// How many there are, or at least so many.
#[derive(Debug, Serialize)]
struct Count {
    number: usize,
    at_least: bool,
}

impl From<&Page> for Count {
    fn from(page: &Page) -> Self {
        Self {
            number: page.records.len(),
            at_least: page.next.is_some(),
        }
    }
}

/// An [`Overview`] as JSON.
#[derive(Debug, Serialize)]
pub(super) struct OverviewView {
    as_of: String,
    unknown_open: Count,
    in_flight: Count,
    since_start: Option<SinceStart>,
    unknown: Vec<OperationView>,
    latest: Vec<OperationView>,
}

/// `GET /v1/overview`.
pub(super) async fn show<S: Store>(desk: May<S, Read>) -> Result<Json<OverviewView>, Refusal> {
    let overview = Overview::of(&desk).await?;
    let newest = overview.unknown.records.iter().take(UNKNOWN);
    Ok(Json(OverviewView {
        as_of: show_moment(overview.at),
        unknown_open: Count::from(&overview.unknown),
        in_flight: Count::from(&overview.in_flight),
        since_start: overview.since_start,
        unknown: newest.map(OperationView::from).collect(),
        latest: overview
            .latest
            .records
            .iter()
            .map(OperationView::from)
            .collect(),
    }))
}
