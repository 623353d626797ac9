//! OpenMeter, and whoever else takes CloudEvents in batches
//! (<https://openmeter.io/docs/metering/events/overview>).

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header::AUTHORIZATION};
use onlyonce_core::{Entry, Timestamp};
use serde_json::{Value, json};

use super::{bearer, post};
use crate::event;
use crate::outbox::{Sink, Verdict};

/// Events of a request.
const MOST: usize = 100;

/// A taker of CloudEvents. It drops an event whose source and id it has seen.
pub struct OpenMeter {
    url: Uri,
    token: Option<HeaderValue>,
    source: Box<str>,
}

impl OpenMeter {
    /// Events from `source`, posted to `url`. `None` where the token cannot stand in a header.
    pub fn new(url: Uri, token: Option<&str>, source: &str) -> Option<Self> {
        let token = match token {
            Some(token) => Some(bearer(token)?),
            None => None,
        };
        Some(Self {
            url,
            token,
            source: source.into(),
        })
    }

    fn event(&self, entry: &Entry) -> Value {
        json!({
            "specversion": "1.0",
            "type": event::COMPLETED,
            "id": entry.id.to_string(),
            "time": event::rfc3339(entry.at),
            "source": self.source,
            "subject": entry.scope.tenant,
            "datacontenttype": "application/json",
            "data": event::json(entry),
        })
    }
}

impl Sink for OpenMeter {
    fn most(&self) -> usize {
        MOST
    }

    fn request(
        &self,
        entries: &[Entry],
        _now: Timestamp,
    ) -> Result<Option<Request<Bytes>>, String> {
        let events: Vec<Value> = entries.iter().map(|entry| self.event(entry)).collect();
        let token = self
            .token
            .iter()
            .map(|token| (AUTHORIZATION, token.clone()));
        let body = Value::Array(events).to_string();
        let kind = "application/cloudevents-batch+json";
        Ok(Some(post(&self.url, kind, token, body)))
    }

    fn read(&self, answer: &Response<Bytes>, entries: usize) -> Verdict {
        split(Verdict::of(answer), answer.status(), entries)
    }
}

/// A batch that is refused for what is in it is told one by one. What no entry is to blame for is no
/// reason to.
pub(super) fn split(verdict: Verdict, status: StatusCode, entries: usize) -> Verdict {
    match verdict {
        Verdict::Dead(why)
            if entries > 1
                && matches!(
                    status,
                    StatusCode::BAD_REQUEST
                        | StatusCode::PAYLOAD_TOO_LARGE
                        | StatusCode::UNPROCESSABLE_ENTITY
                ) =>
        {
            Verdict::Split(why)
        }
        verdict => verdict,
    }
}
