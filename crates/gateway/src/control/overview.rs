//! What is going on, at a glance.

use axum::Json;
use axum::extract::Query as QueryOf;
use axum::extract::rejection::QueryRejection;
use onlyonce_core::{StateName, Timestamp};
use onlyonce_http::Status;
use onlyonce_store::{Page, Query, Store};
use serde::{Deserialize, Serialize};

use super::access::{May, Read};
use super::answer::Refusal;
use super::desk::Desk;
use super::operation::OperationView;
use super::query::show_moment;
use super::spend::{By, Group, Range, Spend, SumsView};
use crate::metrics::Answer;

/// Operations of one state are counted so far: a store keeps no sums.
pub(super) const COUNTED: usize = 100;
/// The newest operations that are shown.
const LATEST: usize = 10;
/// The newest unknown ones.
pub(super) const UNKNOWN: usize = 5;
/// Models and tenants with the most spent.
const TOP: usize = 6;

/// What is going on.
pub(super) struct Overview {
    pub(super) at: Timestamp,
    pub(super) unknown: Page,
    pub(super) in_flight: Page,
    pub(super) latest: Page,
    /// What this gateway counted, where it is not one tenant only that is looked at.
    pub(super) since_start: Option<SinceStart>,
    /// What was spent.
    pub(super) spend: Spend,
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
    pub(super) async fn of<S: Store>(desk: &Desk<S>, range: Range) -> Result<Self, Refusal> {
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
            spend: Spend::of(desk, range).await?,
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
    range: &'static str,
    total: SumsView,
    series: Vec<PeriodView>,
    top_models: Vec<TopView>,
    top_tenants: Vec<TopView>,
    unknown: Vec<OperationView>,
    latest: Vec<OperationView>,
}

/// Sums of one hour or day.
#[derive(Debug, Serialize)]
struct PeriodView {
    at: String,
    #[serde(flatten)]
    sums: SumsView,
}

/// Sums of one model or tenant.
#[derive(Debug, Serialize)]
struct TopView {
    name: String,
    #[serde(flatten)]
    sums: SumsView,
}

impl From<Group> for TopView {
    fn from(group: Group) -> Self {
        Self {
            name: group.names.concat(),
            sums: SumsView::from(&group.sums),
        }
    }
}

/// The query of `GET /v1/overview`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OverviewQuery {
    pub(super) range: Option<String>,
}

impl OverviewQuery {
    /// What it may have.
    pub(super) const FIELDS: &str = "use range";
}

/// `GET /v1/overview`.
pub(super) async fn show<S: Store>(
    desk: May<S, Read>,
    query: Result<QueryOf<OverviewQuery>, QueryRejection>,
) -> Result<Json<OverviewView>, Refusal> {
    let QueryOf(query) =
        query.map_err(|error| Refusal::bad_request(error.body_text(), OverviewQuery::FIELDS))?;
    let overview = Overview::of(&desk, Range::read(query.range.as_deref())?).await?;
    let spend = &overview.spend;
    let top = |by| spend.top(by, TOP).into_iter().map(TopView::from).collect();
    let newest = overview.unknown.records.iter().take(UNKNOWN);
    Ok(Json(OverviewView {
        as_of: show_moment(overview.at),
        unknown_open: Count::from(&overview.unknown),
        in_flight: Count::from(&overview.in_flight),
        since_start: overview.since_start,
        range: spend.range.as_str(),
        total: SumsView::from(&spend.total),
        series: spend
            .series
            .iter()
            .map(|(period, sums)| PeriodView {
                at: show_moment(*period),
                sums: SumsView::from(sums),
            })
            .collect(),
        top_models: top(By::Model),
        top_tenants: top(By::Tenant),
        unknown: newest.map(OperationView::from).collect(),
        latest: overview
            .latest
            .records
            .iter()
            .map(OperationView::from)
            .collect(),
    }))
}
