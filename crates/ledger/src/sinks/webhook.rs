//! Any URL, by Standard Webhooks 1.0 (<https://www.standardwebhooks.com>): one event a request, signed.

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri};
use onlyonce_core::{Entry, Timestamp};
use serde_json::json;

use super::post;
use crate::event;
use crate::outbox::Sink;

/// The event's id: the same however often it comes.
const ID: HeaderName = HeaderName::from_static("webhook-id");
/// When this request was made, in seconds.
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
/// One signature for each secret.
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// What a secret begins with.
const PREFIX: &str = "whsec_";

/// A secret that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no secret of Standard Webhooks: whsec_ and 24 to 64 bytes as base64")]
pub struct BadSecret;

/// A URL that events are posted to.
pub struct Webhook {
    url: Uri,
    keys: Vec<Key>,
}

impl Webhook {
    /// Signs with each of `secrets`: while one takes the place of another, a receiver that knows either
    /// is served.
    pub fn new<'a>(
        url: Uri,
        secrets: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, BadSecret> {
        let keys: Result<Vec<Key>, BadSecret> = secrets.into_iter().map(key).collect();
        let keys = keys?;
        match keys.is_empty() {
            true => Err(BadSecret),
            false => Ok(Self { url, keys }),
        }
    }
}

fn key(secret: &str) -> Result<Key, BadSecret> {
    let text = secret.strip_prefix(PREFIX).ok_or(BadSecret)?;
    let bytes = STANDARD.decode(text).map_err(|_| BadSecret)?;
    match bytes.len() {
        24..=64 => Ok(Key::new(HMAC_SHA256, &bytes)),
        _ => Err(BadSecret),
    }
}

impl Sink for Webhook {
    fn request(&self, entries: &[Entry], now: Timestamp) -> Result<Option<Request<Bytes>>, String> {
        let [entry] = entries else {
            return Err("a webhook tells of one event".to_owned());
        };
        let body = json!({
            "type": event::COMPLETED,
            "timestamp": event::rfc3339(entry.at),
            "data": event::json(entry),
        })
        .to_string();
        let id = entry.id.to_string();
        let seconds = (now.as_millis() / 1_000).to_string();
        let signed = format!("{id}.{seconds}.{body}");
        let signatures: Vec<String> = self
            .keys
            .iter()
            .map(|key| format!("v1,{}", STANDARD.encode(sign(key, signed.as_bytes()))))
            .collect();
        let headers = [
            (ID, id),
            (TIMESTAMP, seconds),
            (SIGNATURE, signatures.join(" ")),
        ];
        let mut parsed = Vec::with_capacity(headers.len());
        for (name, text) in headers {
            let value = HeaderValue::from_str(&text).map_err(|error| error.to_string())?;
            parsed.push((name, value));
        }
        Ok(Some(post(&self.url, "application/json", parsed, body)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_whsec_and_base64_of_enough_bytes() {
        let url = || Uri::from_static("http://127.0.0.1/hook");
        let good = format!("whsec_{}", STANDARD.encode([7; 24]));
        assert!(Webhook::new(url(), [good.as_str()]).is_ok());
        let short = format!("whsec_{}", STANDARD.encode([7; 23]));
        for bad in [
            "",
            "whsec_",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_?",
            &short,
        ] {
            assert!(Webhook::new(url(), [bad]).is_err(), "{bad}");
        }
        assert!(Webhook::new(url(), []).is_err());
    }
}
