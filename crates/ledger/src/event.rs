//! An entry of the books as JSON: what sinks are told, and what the control listener shows.
//!
//! docs/ledger.md describes each field. Fields may be added; none changes its meaning.

use std::time::{Duration, UNIX_EPOCH};

use onlyonce_core::{Entry, Timestamp, TraceId};
use serde_json::{Map, Value, json};

/// The type of the event that a completed operation makes.
pub const COMPLETED: &str = "onlyonce.operation.completed";

/// The entry as a JSON object.
pub fn json(entry: &Entry) -> Value {
    let metered = &entry.metered;
    let usage: Map<String, Value> = metered
        .usage
        .iter()
        .map(|(unit, count)| (unit.as_str().to_owned(), count.into()))
        .collect();
    let cost = metered.cost.as_ref().map(|cost| {
        json!({
            "amount": cost.amount.to_string(),
            "currency": "USD",
            "basis": cost.basis.as_str(),
            "version": cost.version,
        })
    });
    json!({
        "id": entry.id.to_string(),
        "completed_at": rfc3339(entry.at),
        "claimed_at": rfc3339(entry.claimed_at),
        "tenant": entry.scope.tenant,
        "namespace": entry.scope.namespace,
        "route": entry.route,
        "status": entry.status,
        "provider": told(&metered.provider),
        "model": told(&metered.model),
        "request_model": told(&metered.request_model),
        "operation": told(&metered.operation),
        "response_id": told(&metered.response_id),
        "tier": told(&metered.tier),
        "source": metered.source.as_str(),
        "usage": usage,
        "cost": cost,
        "trace_id": entry.trace.as_ref().map(trace_id),
    })
}

/// A text that somebody said; `None` where nobody did.
pub(crate) fn told(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// A trace's id as W3C writes it.
pub(crate) fn trace_id(trace: &TraceId) -> String {
    let digits = trace.as_bytes().iter();
    digits.map(|byte| format!("{byte:02x}")).collect()
}

/// A moment as RFC 3339 writes it, in UTC, to the millisecond.
pub fn rfc3339(moment: Timestamp) -> String {
    // The end of the year 9999 is the last moment that can be written.
    let millis = moment.as_millis().min(253_402_300_799_999);
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)).to_string()
}
