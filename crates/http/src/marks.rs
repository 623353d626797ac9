//! What we write on a response to say what it is.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use onlyonce_core::{Key, OperationId, Timestamp};

/// How the answer came about: `executed`, `replayed`, `joined` or `released`.
pub static ONLYONCE_STATUS: HeaderName = HeaderName::from_static("onlyonce-status");
/// The operation's id, `op_<uuid>`.
pub static ONLYONCE_OPERATION: HeaderName = HeaderName::from_static("onlyonce-operation");
/// The number of this attempt, from 1.
pub static ONLYONCE_ATTEMPT: HeaderName = HeaderName::from_static("onlyonce-attempt");
/// The end of the window, RFC 3339 in UTC.
pub static ONLYONCE_EXPIRES: HeaderName = HeaderName::from_static("onlyonce-expires");
/// The key that was derived for a request that came without one.
pub static ONLYONCE_KEY: HeaderName = HeaderName::from_static("onlyonce-key");
/// `true` on answers that another attempt was executed for.
pub static IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Whether to try again, as the OpenAI and Anthropic SDKs read it.
pub static X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Whether to try again, as Stripe's SDKs read it.
pub static STRIPE_SHOULD_RETRY: HeaderName = HeaderName::from_static("stripe-should-retry");

/// 9999-12-31T23:59:59Z, the last moment that RFC 3339 can write.
const LAST_SECOND: u64 = 253_402_300_799;

/// How an answer came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// This attempt was executed.
    Executed,
    /// From the finished recording.
    Replayed,
    /// From a recording that was still growing.
    Joined,
    /// The upstream's answer says that nothing ran, and the key is free again.
    Released,
}

impl Status {
    /// As in `Onlyonce-Status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Executed => "executed",
            Self::Replayed => "replayed",
            Self::Joined => "joined",
            Self::Released => "released",
        }
    }
}

/// The marks of one response.
#[derive(Clone, Copy, Debug)]
pub struct Marks<'a> {
    /// How the answer came about; `None` on a refusal.
    pub status: Option<Status>,
    /// Whether another attempt was executed for it. Always so of a replay and a join, and of a
    /// released answer that was joined (I18).
    pub replayed: bool,
    /// The operation.
    pub operation: OperationId,
    /// The number of this attempt.
    pub attempt: u32,
    /// The end of the window, on terminal answers.
    pub expires: Option<Timestamp>,
    /// The key, where it was derived.
    pub derived_key: Option<&'a Key>,
}

impl Marks<'_> {
    /// Writes the marks over whatever stands there.
    pub fn write(&self, headers: &mut HeaderMap) {
        if let Some(status) = self.status {
            let value = HeaderValue::from_static(status.as_str());
            headers.insert(&ONLYONCE_STATUS, value);
        }
        if self.replayed {
            headers.insert(&IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        }
        insert_text(headers, &ONLYONCE_OPERATION, &self.operation.to_string());
        headers.insert(&ONLYONCE_ATTEMPT, HeaderValue::from(self.attempt));
        if let Some(expires) = self.expires {
            insert_text(headers, &ONLYONCE_EXPIRES, &rfc_3339(expires));
        }
        if let Some(key) = self.derived_key {
            insert_text(headers, &ONLYONCE_KEY, key.as_str());
        }
    }
}

/// Says whether to try again, to every SDK that listens.
pub fn write_should_retry(headers: &mut HeaderMap, retry: bool) {
    let value = HeaderValue::from_static(if retry { "true" } else { "false" });
    headers.insert(&X_SHOULD_RETRY, value.clone());
    headers.insert(&STRIPE_SHOULD_RETRY, value);
}

/// Whether `name` is one that only we write: taken out of what comes from either side.
pub fn is_ours(name: &HeaderName) -> bool {
    name.as_str().starts_with("onlyonce-") || *name == IDEMPOTENT_REPLAYED
}

/// Takes out of `headers` what only we write: somebody else's marks say nothing.
pub fn strip(headers: &mut HeaderMap) {
    while let Some(name) = headers.keys().find(|name| is_ours(name)).cloned() {
        headers.remove(name);
    }
}

/// `moment` in RFC 3339, in UTC, to the second.
pub fn rfc_3339(moment: Timestamp) -> String {
    let seconds = (moment.as_millis() / 1000).min(LAST_SECOND);
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
        .to_string()
}

fn insert_text(headers: &mut HeaderMap, name: &'static HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks() -> Marks<'static> {
        Marks {
            status: Some(Status::Executed),
            replayed: false,
            operation: OperationId::new(1_700_000_000_000, &[0; 10]),
            attempt: 1,
            expires: None,
            derived_key: None,
        }
    }

    #[test]
    fn marks_are_written_over_what_stands_there() {
        let mut headers = HeaderMap::new();
        headers.append(&ONLYONCE_STATUS, HeaderValue::from_static("forged"));
        headers.append(&ONLYONCE_STATUS, HeaderValue::from_static("twice"));
        marks().write(&mut headers);
        let values: Vec<_> = headers.get_all(&ONLYONCE_STATUS).iter().collect();
        assert_eq!(values, ["executed"]);
        assert_eq!(headers["onlyonce-attempt"], "1");
        let id = headers["onlyonce-operation"].to_str().unwrap();
        assert_eq!(id.parse::<OperationId>().unwrap(), marks().operation);
        assert_eq!(headers.len(), 3);
    }

    #[test]
    fn a_replay_says_so_and_names_its_end() {
        let key = Key::new("derived-1").unwrap();
        let replay = Marks {
            status: Some(Status::Replayed),
            replayed: true,
            attempt: 7,
            expires: Some(Timestamp::from_millis(1_700_000_000_999)),
            derived_key: Some(&key),
            ..marks()
        };
        let mut headers = HeaderMap::new();
        replay.write(&mut headers);
        assert_eq!(headers["idempotent-replayed"], "true");
        assert_eq!(headers["onlyonce-status"], "replayed");
        assert_eq!(headers["onlyonce-attempt"], "7");
        assert_eq!(headers["onlyonce-expires"], "2023-11-14T22:13:20Z");
        assert_eq!(headers["onlyonce-key"], "derived-1");
    }

    #[test]
    fn the_end_of_time_can_be_written() {
        let last = rfc_3339(Timestamp::from_millis(u64::MAX));
        assert_eq!(last, "9999-12-31T23:59:59Z");
    }

    #[test]
    fn only_our_own_names_are_ours() {
        for name in [
            "onlyonce-status",
            "onlyonce-anything",
            "idempotent-replayed",
        ] {
            assert!(is_ours(&HeaderName::from_static(name)), "{name}");
        }
        for name in [
            "x-should-retry",
            "idempotency-key",
            "onlyonce",
            "x-onlyonce-a",
        ] {
            assert!(!is_ours(&HeaderName::from_static(name)), "{name}");
        }
    }
}
