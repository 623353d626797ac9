//! Lago's usage events (<https://getlago.com/docs/api-reference/events/batch>), a hundred a request.

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header::AUTHORIZATION};
use onlyonce_core::{Entry, Timestamp};
use serde_json::json;

use super::openmeter::split;
use super::{Customers, Value, bearer, post};
use crate::event::told;
use crate::outbox::{Sink, Verdict};

/// Events of a request.
const MOST: usize = 100;

/// A billable metric of Lago's. It refuses a `transaction_id` that it has.
pub struct Lago {
    url: Uri,
    key: HeaderValue,
    code: Box<str>,
    subscriptions: Customers,
    value: Value,
}

impl Lago {
    /// Events of the metric `code`, posted to `url`. `None` where the key cannot stand in a header.
    pub fn new(
        url: Uri,
        key: &str,
        code: &str,
        subscriptions: Customers,
        value: Value,
    ) -> Option<Self> {
        Some(Self {
            url,
            key: bearer(key)?,
            code: code.into(),
            subscriptions,
            value,
        })
    }
}

impl Sink for Lago {
    fn most(&self) -> usize {
        MOST
    }

    fn request(
        &self,
        entries: &[Entry],
        _now: Timestamp,
    ) -> Result<Option<Request<Bytes>>, String> {
        let mut events = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(subscription) = self.subscriptions.of(entry)? else {
                continue;
            };
            events.push(json!({
                "transaction_id": entry.id.to_string(),
                "external_subscription_id": subscription,
                "code": self.code,
                "timestamp": entry.at.as_millis() / 1_000,
                "properties": {
                    self.value.as_str(): self.value.of(entry).to_string(),
                    "provider": told(&entry.metered.provider),
                    "model": told(&entry.metered.model),
                    "route": entry.route,
                },
            }));
        }
        if events.is_empty() {
            return Ok(None);
        }
        let key = [(AUTHORIZATION, self.key.clone())];
        let body = json!({ "events": events }).to_string();
        Ok(Some(post(&self.url, "application/json", key, body)))
    }

    fn read(&self, answer: &Response<Bytes>, entries: usize) -> Verdict {
        let status = answer.status();
        let is_known = status == StatusCode::UNPROCESSABLE_ENTITY
            && memchr::memmem::find(answer.body(), b"value_already_exist").is_some();
        // Of a batch, one may be known and the others not: none of it was taken.
        match is_known && entries == 1 {
            true => Verdict::Delivered,
            false => split(Verdict::of(answer), status, entries),
        }
    }
}
