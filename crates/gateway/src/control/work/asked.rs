//! What a worker may ask: from JSON to values that are valid, in one step.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use axum::http::StatusCode;
use onlyonce_core::metered::{Source, Unit};
use onlyonce_core::{Key, Metered};
use onlyonce_engine::ClaimToken;
use onlyonce_store::Store;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{default_lease, default_window, key};
use crate::config::{nearest, parse_duration, show_duration};
use crate::control::answer::Refusal;
use crate::control::desk::Desk;

/// A lease is short enough for a dead worker to be found out, and long enough to be renewed in time.
const LEASES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3_600);
/// For how long a result may answer.
pub(crate) const WINDOWS: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(10 * 365 * 86_400);
/// Characters of a name, a namespace, a nonce, or a word about what was used.
const WORD_MAX: usize = 255;

/// The body of `POST /v1/work`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::control) struct BeginBody {
    key: String,
    tenant: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    input: Option<Box<RawValue>>,
    lease: Option<String>,
    wait: Option<String>,
    nonce: Option<String>,
    #[serde(default)]
    on_unknown: OnUnknownBody,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum OnUnknownBody {
    #[default]
    Report,
    Rerun,
}

/// An operation that is to be begun.
pub(super) struct Begun {
    pub(super) key: Key,
    pub(super) tenant: Option<Box<str>>,
    pub(super) namespace: Box<str>,
    /// What it is, for people.
    pub(super) name: Box<str>,
    pub(super) input: Option<Box<RawValue>>,
    pub(super) lease: Duration,
    /// How long to wait for the end, where it is not to be told at once that somebody executes it.
    pub(super) wait: Option<Duration>,
    pub(super) nonce: Option<Box<str>>,
    /// Whether it may run again where nobody knows whether it ran.
    pub(super) reruns: bool,
}

impl BeginBody {
    pub(super) fn read<S: Store>(self, desk: &Desk<S>) -> Result<Begun, Refusal> {
        let wait = self.wait.as_deref().map(|text| span("wait", text));
        let wait = wait.transpose()?.filter(|wait| !wait.is_zero());
        Ok(Begun {
            key: key(&self.key)?,
            tenant: word("tenant", self.tenant)?,
            namespace: word("namespace", self.namespace)?.unwrap_or_else(|| "work".into()),
            name: word("name", self.name)?.unwrap_or_else(|| "work".into()),
            input: self.input,
            lease: lease(self.lease.as_deref(), default_lease(desk))?,
            wait: wait.map(|wait| wait.min(desk.limits().work_wait)),
            nonce: word("nonce", self.nonce)?,
            reruns: self.on_unknown == OnUnknownBody::Rerun,
        })
    }
}

/// The body of `POST /v1/work/{id}/heartbeat`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::control) struct HeartbeatBody {
    claim: String,
    lease: Option<String>,
}

impl HeartbeatBody {
    pub(super) fn read<S: Store>(self, desk: &Desk<S>) -> Result<(ClaimToken, Duration), Refusal> {
        let lease = lease(self.lease.as_deref(), default_lease(desk))?;
        Ok((claim(&self.claim)?, lease))
    }
}

/// The body of `POST /v1/work/{id}/complete`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::control) struct CompleteBody {
    claim: String,
    result: Box<RawValue>,
    window: Option<String>,
    metered: Option<MeteredBody>,
}

/// A result that is to be recorded.
pub(super) struct Completed {
    pub(super) token: ClaimToken,
    pub(super) result: Box<RawValue>,
    pub(super) window: Duration,
    pub(super) metered: Option<MeteredBody>,
}

impl CompleteBody {
    pub(super) fn read<S: Store>(self, desk: &Desk<S>) -> Result<Completed, Refusal> {
        let limit = desk.limits().work_result;
        if self.result.get().len() > limit {
            return Err(Refusal::too_large(limit as u64));
        }
        let answers_for = match self.window.as_deref() {
            Some(text) => window("window", text)?,
            None => default_window(desk),
        };
        Ok(Completed {
            token: claim(&self.claim)?,
            result: self.result,
            window: answers_for,
            metered: self.metered,
        })
    }
}

/// The body of `POST /v1/work/{id}/release`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::control) struct ReleaseBody {
    claim: String,
}

impl ReleaseBody {
    pub(super) fn read(self) -> Result<ClaimToken, Refusal> {
        claim(&self.claim)
    }
}

/// The body of `POST /v1/work/{id}/fail`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::control) struct FailBody {
    claim: String,
    metered: Option<MeteredBody>,
}

impl FailBody {
    pub(super) fn read(self) -> Result<(ClaimToken, Option<MeteredBody>), Refusal> {
        Ok((claim(&self.claim)?, self.metered))
    }
}

/// What a worker says that it used: as operations show it, without the cost.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MeteredBody {
    provider: Option<String>,
    operation: Option<String>,
    model: Option<String>,
    request_model: Option<String>,
    response_id: Option<String>,
    tier: Option<String>,
    /// Counts by unit.
    #[serde(default)]
    usage: BTreeMap<String, u64>,
}

impl MeteredBody {
    pub(super) fn read(self, source: Source) -> Result<Metered, Refusal> {
        let said = |name, text| Ok::<_, Refusal>(word(name, text)?.unwrap_or_default());
        let counts = self.usage.iter().map(|(name, count)| {
            let unit = Unit::named(name).ok_or_else(|| no_unit(name))?;
            Ok((unit, *count))
        });
        Ok(Metered {
            provider: said("provider", self.provider)?,
            operation: said("operation", self.operation)?,
            model: said("model", self.model)?,
            request_model: said("request_model", self.request_model)?,
            response_id: said("response_id", self.response_id)?,
            tier: said("tier", self.tier)?,
            usage: counts.collect::<Result<_, Refusal>>()?,
            source,
            cost: None,
        })
    }
}

fn no_unit(name: &str) -> Refusal {
    let units = Unit::ALL.iter().map(|unit| unit.as_str());
    let next = match nearest(name, units.clone()) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("use one of: {}", units.collect::<Vec<_>>().join(", ")),
    };
    Refusal::bad_request(format!("nothing is counted in {name}"), next)
}

fn claim(text: &str) -> Result<ClaimToken, Refusal> {
    text.parse()
        .map_err(|error: onlyonce_engine::NotAClaimToken| {
            Refusal::bad_request(error.to_string(), "send the claim that begin has answered")
        })
}

/// A word of the caller's own.
pub(in crate::control) fn word(
    name: &str,
    text: Option<String>,
) -> Result<Option<Box<str>>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    if (1..=WORD_MAX).contains(&text.len()) && !text.contains(char::is_control) {
        return Ok(Some(text.into()));
    }
    Err(Refusal::bad_request(
        format!("{name} is empty, too long, or has control characters"),
        format!("send 1 to {WORD_MAX} bytes of text, or leave {name} out"),
    ))
}

fn lease(text: Option<&str>, default: Duration) -> Result<Duration, Refusal> {
    text.map_or(Ok(default), |text| within("lease", text, &LEASES))
}

fn within(name: &str, text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, Refusal> {
    let span = span(name, text)?;
    if range.contains(&span) {
        return Ok(span);
    }
    let [least, most] = [range.start(), range.end()].map(|span| show_duration(*span));
    Err(Refusal::bad_request(
        format!("{name} is {text}"),
        format!("ask for {least} to {most}"),
    ))
}

/// The span for which a result answers, as `text` says it.
pub(in crate::control) fn window(name: &str, text: &str) -> Result<Duration, Refusal> {
    within(name, text, &WINDOWS)
}

/// The span of time that `text` says.
pub(super) fn span(name: &str, text: &str) -> Result<Duration, Refusal> {
    parse_duration(text).ok_or_else(|| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("{name} is no span of time: {text}"),
            "write whole numbers with ms, s, m, h or d, like \"30s\" or \"1h30m\"",
        )
    })
}
