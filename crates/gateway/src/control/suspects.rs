//! Requests that look like repeats, on routes with `key = "observe"`.

use axum::Json;
use onlyonce_core::Timestamp;
use onlyonce_store::Store;
use serde::Serialize;

use super::access::{May, Read};
use super::answer::Refusal;
use super::query::show_moment;
use crate::observe::{Kind, Sum};

/// What looks like repeats, since this gateway started.
pub(super) struct Suspected {
    pub(super) at: Timestamp,
    pub(super) since: Timestamp,
    /// The routes that observe.
    pub(super) observing: Vec<Box<str>>,
    /// What cost most first.
    pub(super) kinds: Vec<(Kind, Sum)>,
}

impl Suspected {
    /// All kinds together.
    pub(super) fn total(&self) -> Sum {
        let mut total = Sum::default();
        self.kinds.iter().for_each(|(_, sum)| total.add(sum));
        total
    }

    /// The library that sent most of them, and how many.
    pub(super) fn main_client(&self) -> Option<(&str, u64)> {
        let times = |client: &str| {
            let of = self
                .kinds
                .iter()
                .filter(|(kind, _)| *kind.client == *client);
            of.map(|(_, sum)| sum.times).sum()
        };
        let named = self
            .kinds
            .iter()
            .filter(|(kind, _)| !kind.client.is_empty());
        named
            .map(|(kind, _)| (&*kind.client, times(&kind.client)))
            .max_by_key(|(_, times)| *times)
    }
}

/// A [`Suspected`] as JSON.
#[derive(Debug, Serialize)]
pub(super) struct SuspectsView {
    as_of: String,
    since: String,
    observing: Vec<Box<str>>,
    total: SumView,
    suspects: Vec<KindView>,
}

#[derive(Debug, Serialize)]
struct KindView {
    tenant: Option<Box<str>>,
    route: Box<str>,
    client: Box<str>,
    model: Box<str>,
    #[serde(flatten)]
    sum: SumView,
}

#[derive(Debug, Serialize)]
struct SumView {
    times: u64,
    input_tokens: u64,
    output_tokens: u64,
    cost_usd: String,
    unpriced: u64,
    latest: Option<String>,
}

impl From<Sum> for SumView {
    fn from(sum: Sum) -> Self {
        Self {
            times: sum.times,
            input_tokens: sum.input,
            output_tokens: sum.output,
            cost_usd: sum.cost.to_string(),
            unpriced: sum.unpriced,
            latest: (sum.times > 0).then(|| show_moment(sum.latest)),
        }
    }
}

/// `GET /v1/suspects`.
pub(super) async fn list<S: Store>(desk: May<S, Read>) -> Result<Json<SuspectsView>, Refusal> {
    let suspected = desk.suspects();
    let total = suspected.total().into();
    let suspects = suspected.kinds.into_iter().map(|(kind, sum)| KindView {
        tenant: kind.tenant,
        route: kind.route,
        client: kind.client,
        model: kind.model,
        sum: sum.into(),
    });
    Ok(Json(SuspectsView {
        as_of: show_moment(suspected.at),
        since: show_moment(suspected.since),
        observing: suspected.observing,
        total,
        suspects: suspects.collect(),
    }))
}
