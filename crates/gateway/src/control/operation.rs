//! An operation as JSON.

use std::collections::BTreeMap;

use onlyonce_core::{Attempt, Cost, Got, HeaderBlock, Metered, Record, State, StateName, Usd};
use onlyonce_engine::Operation;
use onlyonce_store::Stored;
use serde::Serialize;

use super::access::Access;
use super::query::show_moment;
use crate::config::Right;

/// An operation, as `GET /v1/operations` lists it.
#[derive(Debug, Serialize)]
pub(super) struct OperationView {
    id: String,
    tenant: String,
    namespace: String,
    key: String,
    state: &'static str,
    epoch: u64,
    created_at: String,
    completed_at: Option<String>,
    expires_at: Option<String>,
    lease_until: Option<String>,
    reason: Option<String>,
    route: String,
    method: String,
    path: String,
    status: Option<u16>,
    response_bytes: Option<u64>,
    attempts: u32,
    metered: Option<MeteredView>,
}

/// What an execution used and cost, as far as its answer has told.
#[derive(Debug, Serialize)]
struct MeteredView {
    source: &'static str,
    provider: String,
    operation: String,
    model: String,
    request_model: String,
    response_id: String,
    tier: String,
    /// Counts by unit.
    usage: BTreeMap<&'static str, u64>,
    cost: Option<CostView>,
}

#[derive(Debug, Serialize)]
struct CostView {
    usd: String,
    basis: &'static str,
    version: String,
}

/// An operation, as `GET /v1/operations/{id}` shows it.
#[derive(Debug, Serialize)]
pub(super) struct OperationDetail {
    #[serde(flatten)]
    operation: OperationView,
    attempts_log: Vec<AttemptView>,
    /// `None` where its cost is not known.
    not_spent_usd: Option<String>,
    response_headers: Option<Vec<(String, String)>>,
    ruling: Option<RulingView>,
}

/// What a person decided.
#[derive(Debug, Serialize)]
struct RulingView {
    at: String,
    who: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct AttemptView {
    number: u32,
    at: String,
    peer: String,
    sdk_retry_count: Option<u32>,
    got: &'static str,
    trace_id: Option<String>,
}

impl From<&Stored> for OperationView {
    fn from(stored: &Stored) -> Self {
        let record: &Record = &stored.record;
        let mut view = Self {
            id: record.id.to_string(),
            tenant: record.scope.tenant.to_string(),
            namespace: record.scope.namespace.to_string(),
            key: record.key.to_string(),
            state: record.state.name().as_str(),
            epoch: record.epoch.number(),
            created_at: show_moment(record.id.first_claimed()),
            completed_at: None,
            expires_at: record.expires_at().map(show_moment),
            lease_until: None,
            reason: None,
            route: record.request.route.to_string(),
            method: record.request.method.to_string(),
            path: record.request.path.to_string(),
            status: None,
            response_bytes: None,
            attempts: stored.attempts,
            metered: record.metered.as_deref().map(MeteredView::from),
        };
        match &record.state {
            State::InFlight { lease_until, .. } => {
                view.lease_until = Some(show_moment(*lease_until));
            }
            State::Completed(completed) => {
                view.completed_at = Some(show_moment(completed.completed_at));
                view.status = Some(completed.head.status);
                view.response_bytes = Some(completed.body_len);
            }
            State::Unknown { reason, .. } => view.reason = Some(reason.to_string()),
            State::Released { reason, .. } => view.reason = Some(reason.to_string()),
        }
        view
    }
}

impl From<&Metered> for MeteredView {
    fn from(metered: &Metered) -> Self {
        let usage = metered.usage.iter();
        Self {
            source: metered.source.as_str(),
            provider: metered.provider.to_string(),
            operation: metered.operation.to_string(),
            model: metered.model.to_string(),
            request_model: metered.request_model.to_string(),
            response_id: metered.response_id.to_string(),
            tier: metered.tier.to_string(),
            usage: usage.map(|(unit, count)| (unit.as_str(), count)).collect(),
            cost: metered.cost.as_ref().map(CostView::from),
        }
    }
}

impl From<&Cost> for CostView {
    fn from(cost: &Cost) -> Self {
        Self {
            usd: cost.amount.to_string(),
            basis: cost.basis.as_str(),
            version: cost.version.to_string(),
        }
    }
}

impl OperationDetail {
    /// It as `access` may see it.
    pub(super) fn new(operation: &Operation, access: &Access) -> Self {
        let response_headers = match &operation.stored.record.state {
            State::Completed(completed) => Some(header_list(
                &completed.head.headers,
                access.may(Right::Payload),
            )),
            _ => None,
        };
        Self {
            operation: OperationView::from(&operation.stored),
            attempts_log: operation.attempts.iter().map(AttemptView::from).collect(),
            not_spent_usd: NotSpent::of(operation).map(|not_spent| not_spent.amount.to_string()),
            response_headers,
            ruling: operation
                .stored
                .record
                .ruling
                .as_ref()
                .map(|ruling| RulingView {
                    at: show_moment(ruling.at),
                    who: ruling.who.to_string(),
                    reason: ruling.reason.to_string(),
                }),
        }
    }
}

/// What the attempts that are kept would have cost, had each of them been executed.
pub(super) struct NotSpent {
    /// How many of them were replayed or joined.
    pub(super) attempts: u64,
    pub(super) amount: Usd,
}

impl NotSpent {
    /// `None` where the operation's cost is not known.
    pub(super) fn of(operation: &Operation) -> Option<Self> {
        let record = &operation.stored.record;
        let cost = record.metered.as_deref()?.cost.as_ref()?.amount;
        let spared = operation.attempts.iter();
        let spared = spared.filter(|attempt| matches!(attempt.got, Got::Replayed | Got::Joined));
        let attempts = match record.state.name() {
            StateName::Completed => spared.count() as u64,
            _ => 0,
        };
        let times = i64::try_from(attempts).unwrap_or(i64::MAX);
        Some(Self {
            attempts,
            amount: Usd::from_nanos(cost.nanos().saturating_mul(times)),
        })
    }
}

impl From<&Attempt> for AttemptView {
    fn from(attempt: &Attempt) -> Self {
        Self {
            number: attempt.number,
            at: show_moment(attempt.at),
            peer: attempt.peer.to_string(),
            sdk_retry_count: attempt.sdk_retry_count,
            got: attempt.got.as_str(),
            trace_id: attempt.trace.map(|trace| trace.to_string()),
        }
    }
}

/// Stands for a value that who asks may not see.
const HIDDEN: &str = "(hidden)";

/// A cookie opens what the answer is for, as the body may.
pub(super) fn header_list(headers: &HeaderBlock, with_cookies: bool) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    headers
        .iter()
        .map(|(name, value)| {
            let is_hidden = !with_cookies && name.eq_ignore_ascii_case(b"set-cookie");
            let value = if is_hidden {
                HIDDEN.to_owned()
            } else {
                text(value)
            };
            (text(name), value)
        })
        .collect()
}
