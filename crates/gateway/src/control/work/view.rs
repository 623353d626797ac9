//! A worker's operation as JSON.

use onlyonce_core::{Record, State};
use onlyonce_engine::{Granted, Ticket};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::control::query::show_moment;

/// What `POST /v1/work` answers.
#[derive(Debug, Serialize)]
pub(in crate::control) struct Decision {
    decision: &'static str,
    operation: Option<String>,
    attempt: Option<u32>,
    /// That of the claim: higher than that of every one of this operation before it.
    epoch: Option<u64>,
    /// What proves that the worker may settle it.
    #[serde(skip_serializing_if = "Option::is_none")]
    claim: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
}

impl Decision {
    pub(super) fn nothing(decision: &'static str) -> Self {
        Self {
            decision,
            operation: None,
            attempt: None,
            epoch: None,
            claim: None,
            lease_until: None,
            expires_at: None,
            result: None,
        }
    }

    pub(super) fn execute(granted: &Granted) -> Self {
        Self {
            operation: Some(granted.id.to_string()),
            attempt: Some(granted.attempt),
            epoch: Some(granted.epoch.number()),
            claim: Some(granted.token.to_string()),
            lease_until: Some(show_moment(granted.lease_until)),
            ..Self::nothing("execute")
        }
    }

    pub(super) fn without(decision: &'static str, ticket: &Ticket) -> Self {
        Self {
            operation: Some(ticket.id.to_string()),
            attempt: Some(ticket.attempt),
            epoch: Some(ticket.claim.number()),
            ..Self::nothing(decision)
        }
    }

    pub(super) fn result(decision: &'static str, ticket: &Ticket, result: Box<RawValue>) -> Self {
        Self {
            expires_at: ticket.expires_at.map(show_moment),
            result: Some(result),
            ..Self::without(decision, ticket)
        }
    }
}

/// A worker's operation, as every other answer shows it.
#[derive(Debug, Serialize)]
pub(in crate::control) struct WorkView {
    operation: String,
    tenant: String,
    namespace: String,
    key: String,
    name: String,
    state: &'static str,
    /// That of the claim that counts.
    epoch: u64,
    /// When the claim was made that counts.
    claimed_at: String,
    lease_until: Option<String>,
    completed_at: Option<String>,
    expires_at: Option<String>,
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
}

impl WorkView {
    pub(super) fn of(record: &Record) -> Self {
        let mut view = Self {
            operation: record.id.to_string(),
            tenant: record.scope.tenant.to_string(),
            namespace: record.scope.namespace.to_string(),
            key: record.key.to_string(),
            name: record.request.path.to_string(),
            state: record.state.name().as_str(),
            epoch: record.claim.number(),
            claimed_at: show_moment(record.claimed_at),
            lease_until: None,
            completed_at: None,
            expires_at: None,
            reason: None,
            result: None,
        };
        match &record.state {
            State::InFlight { lease_until, .. } => {
                view.lease_until = Some(show_moment(*lease_until));
            }
            State::Completed(completed) => {
                view.completed_at = Some(show_moment(completed.completed_at));
                view.expires_at = Some(show_moment(completed.expires_at));
            }
            State::Unknown { reason, .. } => view.reason = Some(reason.to_string()),
            State::Released { reason, .. } => view.reason = Some(reason.to_string()),
        }
        view
    }

    pub(super) fn with_result(record: &Record, result: Box<RawValue>) -> Self {
        Self {
            result: Some(result),
            ..Self::of(record)
        }
    }
}
