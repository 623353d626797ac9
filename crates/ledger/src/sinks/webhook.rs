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

    /// The signatures of an event, one for each secret.
    fn signatures(&self, id: &str, seconds: &str, body: &str) -> String {
        let signed = format!("{id}.{seconds}.{body}");
        let signatures: Vec<String> = self
            .keys
            .iter()
            .map(|key| format!("v1,{}", STANDARD.encode(sign(key, signed.as_bytes()))))
            .collect();
        signatures.join(" ")
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
        let signatures = self.signatures(&id, &seconds, &body);
        let headers = [(ID, id), (TIMESTAMP, seconds), (SIGNATURE, signatures)];
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

    fn signing_with(secrets: &[&str]) -> Webhook {
        let url = Uri::from_static("http://127.0.0.1/hook");
        Webhook::new(url, secrets.iter().copied()).expect("secrets")
    }

    /// An event, its secret and its signature, as the libraries of Standard Webhooks test them
    /// (github.com/standard-webhooks/standard-webhooks, `libraries/javascript/src/webhook.test.ts`).
    const PUBLISHED: [&str; 5] = [
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "1614265330",
        r#"{"test": 2432232314}"#,
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    ];

    #[test]
    fn the_published_event_has_the_published_signature() {
        let [secret, id, seconds, body, signature] = PUBLISHED;
        let webhook = signing_with(&[secret]);
        assert_eq!(webhook.signatures(id, seconds, body), signature);
    }

    #[test]
    fn of_two_secrets_each_has_its_signature() {
        let [old, id, seconds, body, signature_of_old] = PUBLISHED;
        let new = format!("whsec_{}", STANDARD.encode([7; 32]));
        let signature_of_new = signing_with(&[&new]).signatures(id, seconds, body);
        assert_ne!(signature_of_new, signature_of_old);
        assert_eq!(
            signing_with(&[&new, old]).signatures(id, seconds, body),
            format!("{signature_of_new} {signature_of_old}")
        );
    }

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
