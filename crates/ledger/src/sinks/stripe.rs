//! Stripe's meter events (<https://docs.stripe.com/api/billing/meter-event/create>), one a request.
//!
//! Stripe drops an `identifier` that it has seen within 24 hours, and takes events that are 35 days old
//! at most.

use std::time::Duration;

use bytes::Bytes;
use form_urlencoded::Serializer;
use http::{HeaderValue, Request, Uri, header::AUTHORIZATION};
use onlyonce_core::{Entry, Timestamp};

use super::{Customers, Value, bearer, post};
use crate::outbox::Sink;

/// What is older is not taken any more; one day less than Stripe says.
const OLDEST: Duration = Duration::from_secs(34 * 86_400);

/// A meter of Stripe's.
pub struct Stripe {
    url: Uri,
    key: HeaderValue,
    event_name: Box<str>,
    customers: Customers,
    value: Value,
}

impl Stripe {
    /// Events called `event_name`, posted to `url`. `None` where the key cannot stand in a header.
    pub fn new(
        url: Uri,
        key: &str,
        event_name: &str,
        customers: Customers,
        value: Value,
    ) -> Option<Self> {
        Some(Self {
            url,
            key: bearer(key)?,
            event_name: event_name.into(),
            customers,
            value,
        })
    }
}

impl Sink for Stripe {
    fn request(&self, entries: &[Entry], now: Timestamp) -> Result<Option<Request<Bytes>>, String> {
        let [entry] = entries else {
            return Err("a meter event tells of one operation".to_owned());
        };
        let Some(customer) = self.customers.of(entry)? else {
            return Ok(None);
        };
        if now.since(entry.at) > OLDEST {
            return Err("it is older than 34 days, and Stripe takes no such event".to_owned());
        }
        let form = Serializer::new(String::new())
            .append_pair("event_name", &self.event_name)
            .append_pair("identifier", &entry.id.to_string())
            .append_pair("timestamp", &(entry.at.as_millis() / 1_000).to_string())
            .append_pair("payload[stripe_customer_id]", customer)
            .append_pair("payload[value]", &self.value.of(entry).to_string())
            .finish();
        let key = [(AUTHORIZATION, self.key.clone())];
        let kind = "application/x-www-form-urlencoded";
        Ok(Some(post(&self.url, kind, key, form)))
    }
}
