//! What the providers say, one file each, and what they have in common.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde_json::Value;

use crate::script::Script;
use openai_responses::Stored;

pub(crate) mod anthropic;
pub(crate) mod echo;
mod error;
pub(crate) mod gemini;
pub(crate) mod models;
pub(crate) mod openai_chat;
pub(crate) mod openai_responses;
pub(crate) mod stripe;

/// Whose shape errors and request ids have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    OpenAi,
    Anthropic,
    Gemini,
    Stripe,
    Plain,
}

impl Family {
    pub(crate) fn of(path: &str, headers: &HeaderMap) -> Self {
        match path {
            "/v1/echo" => Self::Plain,
            "/v1/charges" | "/v1/payment_intents" | "/v1/customers" => Self::Stripe,
            _ if path.starts_with("/v1beta/") || gemini::path(path).is_some() => Self::Gemini,
            _ if path.starts_with("/v1/messages") => Self::Anthropic,
            _ if headers.contains_key("anthropic-version") => Self::Anthropic,
            _ if path.starts_with("/v1/") => Self::OpenAi,
            _ => Self::Plain,
        }
    }

    /// Adds the headers that the provider puts on every answer.
    pub(crate) fn mark(self, headers: &mut HeaderMap, id: &str) {
        let request_id = match self {
            Self::OpenAi => HeaderName::from_static("x-request-id"),
            Self::Anthropic | Self::Stripe => HeaderName::from_static("request-id"),
            Self::Gemini | Self::Plain => return,
        };
        if let Ok(id) = HeaderValue::from_str(&format!("req_{id}")) {
            headers.insert(request_id, id);
        }
        match self {
            Self::OpenAi => {
                headers.insert("openai-version", HeaderValue::from_static("2020-10-01"));
                headers.insert("openai-processing-ms", HeaderValue::from_static("1"));
            }
            Self::Stripe => {
                headers.insert(
                    "stripe-version",
                    HeaderValue::from_static(stripe::API_VERSION),
                );
            }
            _ => {}
        }
    }

    /// The error document of the provider.
    pub(crate) fn error(self, refusal: &Refusal, id: &str) -> Value {
        error::document(self, refusal, id)
    }
}

/// What a provider needs to answer one request.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// Number of the execution; 0 for reads.
    pub(crate) n: u64,
    /// The part of ids that no other execution has: 20 or more hex digits.
    pub(crate) id: &'a str,
    pub(crate) now: SystemTime,
    pub(crate) body: &'a Bytes,
    pub(crate) script: &'a Script,
    pub(crate) content_type: Option<&'a HeaderValue>,
    pub(crate) stored: &'a Stored,
}

/// The words that answers are made of, after the execution's number.
const WORDS: [&str; 18] = [
    " every",
    " answer",
    " of",
    " this",
    " sandbox",
    " names",
    " its",
    " own",
    " execution,",
    " so",
    " that",
    " a",
    " second",
    " one",
    " never",
    " looks",
    " like",
    " the",
];

impl Job<'_> {
    /// Seconds since 1970.
    pub(crate) fn now_s(&self) -> u64 {
        self.now
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    }

    /// The generated text, in as many pieces as the script asks for.
    pub(crate) fn pieces(&self) -> Vec<String> {
        let words = WORDS
            .iter()
            .cycle()
            .take(self.script.chunks - 1)
            .map(|&word| word.to_owned());
        std::iter::once(format!("Execution {}:", self.n))
            .chain(words)
            .collect()
    }

    /// A rough count, as the providers' tokenisers are not here: four bytes a token.
    pub(crate) fn prompt_tokens(&self) -> u64 {
        (self.body.len() as u64).div_ceil(4).max(1)
    }

    /// One token a piece.
    pub(crate) fn completion_tokens(&self) -> u64 {
        self.script.chunks as u64
    }

    /// How long a generation takes that nobody watches.
    pub(crate) fn generation_time(&self) -> Duration {
        self.script.interval * u32::try_from(self.script.chunks).unwrap_or(u32::MAX)
    }

    /// The body as a JSON object. Missing members are forgiven, as this is a sandbox.
    pub(crate) fn json(&self) -> Result<Value, Refusal> {
        match serde_json::from_slice(self.body) {
            Ok(value @ Value::Object(_)) => Ok(value),
            Ok(_) => Err(Refusal::bad_request(
                "The body must be a JSON object.".to_owned(),
            )),
            Err(error) => Err(Refusal::bad_request(format!(
                "The body is not JSON: {error}."
            ))),
        }
    }
}

/// The requested model, or one of the sandbox's own.
pub(crate) fn model(request: &Value) -> &str {
    request["model"].as_str().unwrap_or("sandbox-1")
}

/// An answer with status 200.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) content_type: HeaderValue,
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    /// Sent at once, with its length.
    Whole(Bytes),
    /// Sent one by one, at the pace of the script.
    Events(VecDeque<Bytes>),
}

impl Reply {
    pub(crate) fn json(document: &Value) -> Self {
        Self {
            content_type: HeaderValue::from_static("application/json"),
            content: Content::Whole(document.to_string().into()),
        }
    }

    pub(crate) fn events(events: VecDeque<Bytes>) -> Self {
        Self {
            content_type: HeaderValue::from_static("text/event-stream; charset=utf-8"),
            content: Content::Events(events),
        }
    }
}

/// An error to be told in the provider's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The provider's code, where it is not told by the status alone.
    pub(crate) code: Option<&'static str>,
    pub(crate) param: Option<&'static str>,
}

impl Refusal {
    fn new(status: StatusCode, message: String) -> Self {
        Self {
            status,
            message,
            code: None,
            param: None,
        }
    }

    pub(crate) fn bad_request(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(method: &Method, path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("The sandbox has no {method} {path}."),
        )
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("The body is larger than {limit} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// The fault `status:NNN`.
    pub(crate) fn asked_for(status: StatusCode) -> Self {
        let message = format!(
            "Status {} was asked for by X-Sandbox-Fault.",
            status.as_u16()
        );
        Self::new(status, message)
    }
}

/// Several events in one write, as a server does that has them all at hand.
pub(crate) fn together(events: impl IntoIterator<Item = String>) -> Bytes {
    events.into_iter().collect::<String>().into()
}
