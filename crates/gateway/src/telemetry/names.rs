//! Spans in the words of the OpenTelemetry conventions.
//!
//! HTTP spans: <https://opentelemetry.io/docs/specs/semconv/http/http-spans/>. The `gen_ai.*` names are
//! those of open-telemetry/semantic-conventions-genai, docs/gen-ai/client-inference.md at its commit
//! 024a4f944a1291fcb627c9c47da69e79868dd15e and gen-ai-token-metrics.md at 066d4a7f356f8600de6f10c42874626ab88692fb;
//! all of them are "Development" there, and they stand in this file alone. (The older
//! `gen_ai.client.operation.duration` and `gen_ai.client.token.usage` count embeddings, tools and agents
//! too; of an inference, those of `gen_ai.client.inference` are what is recommended now.) No prompt, no
//! answer, no key and no credential is in a span.

use std::time::Duration;

use onlyonce_core::{Metered, SpanId, TraceId, Unit};
use onlyonce_engine::Ended;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};

use super::context::Context;
use super::spans::{Attempt, Executed, Finished, OTHER};
use super::sums::Call;
use crate::metrics::reason_label;

/// Of a span's flags: it is known whether its parent is of another process.
const HAS_IS_REMOTE: u32 = 1 << 8;
/// The parent is.
const IS_REMOTE: u32 = 1 << 9;

/// How much was used, by unit.
const TOKENS: [(Unit, &str); 11] = [
    (Unit::Input, "gen_ai.usage.input_tokens"),
    (Unit::Output, "gen_ai.usage.output_tokens"),
    (Unit::CacheRead, "gen_ai.usage.cache_read.input_tokens"),
    (Unit::CacheWrite, "gen_ai.usage.cache_write.input_tokens"),
    (Unit::Reasoning, "gen_ai.usage.reasoning.output_tokens"),
    (Unit::InputAudio, "gen_ai.usage.audio.input_tokens"),
    (Unit::OutputAudio, "gen_ai.usage.audio.output_tokens"),
    (Unit::InputImage, "gen_ai.usage.image.input_tokens"),
    (Unit::OutputImage, "gen_ai.usage.image.output_tokens"),
    (
        Unit::CacheReadAudio,
        "gen_ai.usage.audio.cache_read.input_tokens",
    ),
    (
        Unit::CacheReadImage,
        "gen_ai.usage.image.cache_read.input_tokens",
    ),
];

/// What tokens stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Modality {
    /// Nobody said.
    Unknown,
    Text,
    Audio,
    Image,
}

impl Modality {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Text => "text",
            Self::Audio => "audio",
            Self::Image => "image",
        }
    }
}

/// From the request to the last byte of its answer.
pub(super) const DURATION: &str = "gen_ai.client.inference.duration";
/// From the request to the first bytes of a stream.
pub(super) const TO_FIRST_CHUNK: &str = "gen_ai.client.inference.time_to_first_chunk";
/// The bounds that the conventions ask for of both, in seconds.
pub(super) const BOUNDS: [f64; 14] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];

const INPUT: &str = "gen_ai.client.inference.usage.input_tokens";
const OUTPUT: &str = "gen_ai.client.inference.usage.output_tokens";

/// The metrics of tokens, each with what it counts; those of one name stand together.
pub(super) const TOKEN_SUMS: [(&str, Unit, Modality); 11] = [
    (INPUT, Unit::Input, Modality::Unknown),
    (INPUT, Unit::Input, Modality::Text),
    (INPUT, Unit::InputAudio, Modality::Audio),
    (INPUT, Unit::InputImage, Modality::Image),
    (OUTPUT, Unit::Output, Modality::Unknown),
    (OUTPUT, Unit::Output, Modality::Text),
    (OUTPUT, Unit::OutputAudio, Modality::Audio),
    (OUTPUT, Unit::OutputImage, Modality::Image),
    (
        "gen_ai.client.inference.usage.cache_read.input_tokens",
        Unit::CacheRead,
        Modality::Unknown,
    ),
    (
        "gen_ai.client.inference.usage.cache_write.input_tokens",
        Unit::CacheWrite,
        Modality::Unknown,
    ),
    (
        "gen_ai.client.inference.usage.reasoning.output_tokens",
        Unit::Reasoning,
        Modality::Unknown,
    ),
];

impl Finished {
    /// How many spans it is.
    pub(super) fn count(&self) -> u64 {
        match self {
            Self::Attempt(_) | Self::Operation(_) | Self::Late(_) => 1,
            Self::Execution(_) => 2,
        }
    }

    /// As the protocol has it.
    pub(super) fn write(&self, out: &mut Vec<Span>) {
        match self {
            Self::Attempt(attempt) => out.push(self::attempt(attempt)),
            Self::Execution(executed) => {
                out.push(operation(executed));
                out.push(execution(executed));
            }
            Self::Operation(executed) => out.push(operation(executed)),
            Self::Late(executed) => out.push(execution(executed)),
        }
    }
}

fn attempt(attempt: &Attempt) -> Span {
    let route = &attempt.origin.route;
    // What a span is called must not differ from path to path.
    let below = format!("{}/*", route.matcher.path_prefix);
    let mut attributes = Attributes::default();
    attributes.text("http.request.method", attempt.method);
    attributes.text("url.path", &attempt.path);
    attributes.text("http.route", &below);
    attributes.text("client.address", &attempt.origin.peer.to_string());
    attributes.count("http.request.resend_count", attempt.origin.sdk_retry_count);
    attributes.count("http.response.status_code", attempt.status);
    attributes.text("onlyonce.route", &route.name);
    attributes.text("onlyonce.tenant", &attempt.tenant);
    attributes.text("onlyonce.attempt.got", attempt.got.as_str());
    if let Some((id, number)) = &attempt.operation {
        attributes.text("onlyonce.operation.id", &id.to_string());
        attributes.count("onlyonce.attempt.number", Some(*number));
    }
    let error = match attempt.status {
        Some(status) if status >= 500 => Some(status.to_string()),
        _ => attempt.broke.then(|| "broken-answer".to_owned()),
    };
    let links = attempt.link.map(|link| Link {
        trace_id: bytes_of(&link.trace),
        span_id: link.span.as_bytes().to_vec(),
        ..Link::default()
    });
    let parent = attempt.parent.map(|parent| parent.span);
    Span {
        links: links.into_iter().collect(),
        flags: u32::from(attempt.own.flags) | HAS_IS_REMOTE | IS_REMOTE,
        ..span(
            &attempt.own,
            parent,
            format!("{} {below}", called(attempt.method)),
            SpanKind::Server,
            (attempt.begun, attempt.ended),
            attributes,
            error,
        )
    }
}

fn operation(executed: &Executed) -> Span {
    let (id, span_id) = &executed.operation;
    let context = Context {
        span: *span_id,
        ..executed.own
    };
    let (outcome, reason) = match executed.end {
        Some(Ended::Completed) => ("completed", None),
        Some(Ended::Released) => ("released", None),
        Some(Ended::Unknown(reason)) => ("unknown", Some(reason_label(reason))),
        // The gateway went before it was settled.
        None => ("unknown", None),
    };
    let mut attributes = Attributes::default();
    attributes.text("onlyonce.operation.id", &id.to_string());
    attributes.text("onlyonce.operation.outcome", outcome);
    attributes.text("onlyonce.operation.unknown_reason", reason.unwrap_or(""));
    attributes.count("onlyonce.operation.joined", Some(executed.joined));
    let error = (outcome == "unknown").then(|| "outcome-unknown".to_owned());
    span(
        &context,
        Some(executed.parent),
        "onlyonce.operation".to_owned(),
        SpanKind::Internal,
        (executed.begun, executed.ended),
        attributes,
        error,
    )
}

fn execution(executed: &Executed) -> Span {
    let upstream = &executed.route.upstream;
    let mut attributes = Attributes::default();
    attributes.text("http.request.method", executed.method);
    attributes.text("server.address", &upstream.host);
    attributes.count("server.port", Some(upstream.port));
    attributes.count("http.response.status_code", executed.status);
    let mut name = None;
    if let Some(metered) = &executed.metered {
        attributes.metered(metered, time_to_first_chunk(executed));
        name = name_of(metered);
    } else {
        attributes.text("gen_ai.request.model", &executed.request_model);
    }
    let name = name.unwrap_or_else(|| called(executed.method).to_owned());
    span(
        &executed.own,
        Some(executed.operation.1),
        name,
        SpanKind::Client,
        (executed.begun, executed.ended),
        attributes,
        error_of(executed),
    )
}

/// What an execution failed with, if it did.
pub(super) fn error_of(executed: &Executed) -> Option<String> {
    match (executed.status, executed.end) {
        (Some(status), _) if status >= 400 => Some(status.to_string()),
        (_, Some(Ended::Unknown(reason))) => Some(reason_label(reason).to_owned()),
        (None, Some(Ended::Released)) => Some("not_sent".to_owned()),
        _ => None,
    }
}

/// A method in the name of a span.
fn called(method: &'static str) -> &'static str {
    match method {
        OTHER => "HTTP",
        method => method,
    }
}

/// What a call of a model is called.
fn name_of(metered: &Metered) -> Option<String> {
    let asked = Some(&metered.request_model).filter(|model| !model.is_empty());
    let model = asked.unwrap_or(&metered.model);
    let name = format!("{} {model}", metered.operation)
        .trim_end()
        .to_owned();
    (!metered.operation.is_empty()).then_some(name)
}

/// In seconds, of a stream.
pub(super) fn time_to_first_chunk(executed: &Executed) -> Option<f64> {
    let first = executed.first_chunk.filter(|_| executed.streams)?;
    Some(seconds(executed.begun, first))
}

/// From one moment to another, both in nanoseconds.
pub(super) fn seconds(from: u64, to: u64) -> f64 {
    Duration::from_nanos(to.saturating_sub(from)).as_secs_f64()
}

fn span(
    own: &Context,
    parent: Option<SpanId>,
    name: String,
    kind: SpanKind,
    (begun, ended): (u64, u64),
    mut attributes: Attributes,
    error: Option<String>,
) -> Span {
    let status = error.map(|error| {
        attributes.text("error.type", &error);
        Status {
            code: StatusCode::Error.into(),
            ..Status::default()
        }
    });
    Span {
        trace_id: bytes_of(&own.trace),
        span_id: own.span.as_bytes().to_vec(),
        parent_span_id: parent.map_or_else(Vec::new, |parent| parent.as_bytes().to_vec()),
        flags: u32::from(own.flags) | HAS_IS_REMOTE,
        name,
        kind: kind.into(),
        start_time_unix_nano: begun,
        // A clock may have gone back in between.
        end_time_unix_nano: ended.max(begun),
        attributes: attributes.0,
        status,
        ..Span::default()
    }
}

fn bytes_of(trace: &TraceId) -> Vec<u8> {
    trace.as_bytes().to_vec()
}

/// What is said of something. What is empty, or not known, is not said.
#[derive(Default)]
pub(super) struct Attributes(pub(super) Vec<KeyValue>);

impl Attributes {
    pub(super) fn text(&mut self, key: &str, text: &str) {
        if !text.is_empty() {
            self.add(key, Value::StringValue(text.to_owned()));
        }
    }

    /// Which call a count or a time is of; of tokens, also what they stand for.
    pub(super) fn of_call(call: &Call, modality: Option<Modality>) -> Self {
        let mut attributes = Self::default();
        attributes.text("server.address", &call.server);
        attributes.count("server.port", Some(call.port));
        attributes.text("gen_ai.operation.name", &call.operation);
        attributes.text("gen_ai.provider.name", &call.provider);
        attributes.text("gen_ai.request.model", &call.request_model);
        attributes.text("gen_ai.response.model", &call.model);
        if let Some(modality) = modality {
            attributes.text("gen_ai.token.modality", modality.as_str());
        }
        attributes.text("error.type", &call.error);
        attributes
    }

    fn count(&mut self, key: &str, count: Option<impl Into<i64>>) {
        if let Some(count) = count {
            self.add(key, Value::IntValue(count.into()));
        }
    }

    fn add(&mut self, key: &str, value: Value) {
        self.0.push(KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(value) }),
            ..KeyValue::default()
        });
    }

    /// `to_first_chunk` is in seconds, and there for streams.
    fn metered(&mut self, metered: &Metered, to_first_chunk: Option<f64>) {
        self.text("gen_ai.operation.name", &metered.operation);
        self.text("gen_ai.provider.name", &metered.provider);
        self.text("gen_ai.request.model", &metered.request_model);
        self.text("gen_ai.response.model", &metered.model);
        self.text("gen_ai.response.id", &metered.response_id);
        if let Some(seconds) = to_first_chunk {
            self.add("gen_ai.request.stream", Value::BoolValue(true));
            self.add(
                "gen_ai.response.time_to_first_chunk",
                Value::DoubleValue(seconds),
            );
        }
        for (unit, key) in TOKENS {
            let count = metered.usage.get(unit);
            self.count(
                key,
                count.map(|count| i64::try_from(count).unwrap_or(i64::MAX)),
            );
        }
        if let Some(cost) = &metered.cost {
            // For charts. To the nano, the amount stands in the record.
            #[expect(clippy::cast_precision_loss)]
            let amount = cost.amount.nanos() as f64 / 1e9;
            self.add("onlyonce.cost.usd", Value::DoubleValue(amount));
            self.text("onlyonce.cost.basis", cost.basis.as_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use onlyonce_core::{Basis, Cost, Source, Usage, Usd};

    use super::*;

    fn said(metered: &Metered, stream: Option<f64>) -> Vec<String> {
        let mut attributes = Attributes::default();
        attributes.metered(metered, stream);
        let text = |pair: &KeyValue| {
            let value = match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
                Some(Value::StringValue(text)) => text.clone(),
                Some(Value::IntValue(count)) => count.to_string(),
                Some(Value::DoubleValue(number)) => number.to_string(),
                other => format!("{other:?}"),
            };
            format!("{} = {value}", pair.key)
        };
        attributes.0.iter().map(text).collect()
    }

    #[test]
    fn what_was_metered_is_said_by_the_conventions() {
        let usage = [
            (Unit::Input, 100),
            (Unit::Output, 20),
            (Unit::CacheRead, 64),
            (Unit::Reasoning, 7),
            (Unit::WebSearches, 1),
        ];
        let metered = Metered {
            provider: "openai".into(),
            model: "gpt-5-2025-08-07".into(),
            request_model: "gpt-5".into(),
            response_id: "chatcmpl-1".into(),
            operation: "chat".into(),
            usage: Usage::from_iter(usage),
            source: Source::Provider,
            cost: Some(Cost {
                amount: Usd::from_nanos(1_250_000),
                basis: Basis::Table,
                version: "1".into(),
            }),
            ..Metered::default()
        };
        let expected = [
            "gen_ai.operation.name = chat",
            "gen_ai.provider.name = openai",
            "gen_ai.request.model = gpt-5",
            "gen_ai.response.model = gpt-5-2025-08-07",
            "gen_ai.response.id = chatcmpl-1",
            "gen_ai.request.stream = Some(BoolValue(true))",
            "gen_ai.response.time_to_first_chunk = 0.25",
            "gen_ai.usage.input_tokens = 100",
            "gen_ai.usage.output_tokens = 20",
            "gen_ai.usage.cache_read.input_tokens = 64",
            "gen_ai.usage.reasoning.output_tokens = 7",
            "onlyonce.cost.usd = 0.00125",
            "onlyonce.cost.basis = table",
        ];
        assert_eq!(said(&metered, Some(0.25)), expected);
        assert_eq!(name_of(&metered).as_deref(), Some("chat gpt-5"));
    }

    #[test]
    fn what_is_not_metered_is_not_said() {
        assert!(said(&Metered::default(), None).is_empty());
        assert_eq!(name_of(&Metered::default()), None);
    }
}
