//! What Onlyonce says when it refuses: problem documents (RFC 9457).

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use onlyonce_core::{OperationId, StateName, UnknownReason};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Value, json};

use crate::framing::FramingError;
use crate::key::KeyError;
use crate::marks::write_should_retry;
use crate::place::Place;
use crate::problem_pages::{self, ProblemPage};

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Why a request is refused, with the facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The operation is running; the route rejects, or the join deadline passed.
    OperationInFlight {
        /// How long this attempt waited for the end, where the route lets attempts join.
        waited: Option<Duration>,
        /// When to come again.
        retry_after: Duration,
    },
    /// Another fingerprint under a used key. Says nothing of the first request (I6).
    KeyReused,
    /// There has to be a key.
    KeyMissing {
        /// What it is expected in, in words: see [`Problem::no_key_in`].
        expected_in: Box<str>,
    },
    /// The key cannot be read.
    KeyMalformed(KeyError),
    /// It may have run, and nobody can say.
    OutcomeUnknown(UnknownReason),
    /// The same of an operation that is made of steps; carries where it stopped and what to do, in words.
    StepsUnknown {
        /// What happened.
        why: String,
        /// What to do next.
        next: Cow<'static, str>,
    },
    /// An operation that is made of steps stopped between two of them.
    Unfinished {
        /// What happened, in words.
        why: String,
        /// When to come again.
        retry_after: Duration,
    },
    /// No byte of the request was written.
    UpstreamUnreachable {
        /// The upstream's name.
        upstream: String,
        /// What went wrong, in words.
        why: String,
    },
    /// The claim could not be written durably.
    StoreUnavailable {
        /// When to come again.
        retry_after: Duration,
    },
    /// The body is over the limit.
    BodyTooLarge {
        /// The name of the limit, as in the configuration.
        limit_name: &'static str,
        /// Its value, in bytes.
        limit: u64,
    },
    /// The head is over a limit.
    HeadersTooLarge {
        /// The name of the limit, as in the configuration.
        limit_name: &'static str,
        /// Its value.
        limit: u64,
    },
    /// Too many operations.
    QuotaExceeded {
        /// The name of the limit, as in the configuration.
        limit_name: &'static str,
        /// Its value, where that is known.
        limit: Option<u64>,
        /// When to come again.
        retry_after: Duration,
    },
    /// No room for a recording.
    StorageFull {
        /// The name of the limit, as in the configuration; `None` where the disk itself is full.
        limit_name: Option<&'static str>,
    },
    /// No credential, and the configuration wants one.
    CredentialMissing,
    /// The request did not arrive in time.
    RequestTimeout {
        /// The name of the limit, as in the configuration.
        limit_name: &'static str,
        /// Its value.
        limit: Duration,
    },
    /// The head is not one that the gateway takes.
    BadRequest {
        /// What is wrong with it.
        why: Cow<'static, str>,
    },
    /// No route matches.
    RouteNotFound,
    /// The gateway drains.
    ShuttingDown {
        /// When to come again.
        retry_after: Duration,
    },
    /// A switch of protocol under a key.
    UpgradeRefused,
    /// A worker presents a claim that is not the one that counts (I9).
    ClaimLost,
    /// A worker wants to settle what stands settled in another way.
    AlreadySettled(StateName),
}

/// What a problem document says beside the problem.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProblemContext<'a> {
    /// Where the control listener is reached from outside, without a slash at its end.
    pub public_url: Option<&'a str>,
    /// The operation, where there is one and the caller may know it.
    pub operation: Option<OperationId>,
    /// Where it is said.
    pub place: Place,
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        Self::KeyMalformed(error)
    }
}

impl From<FramingError> for Problem {
    fn from(error: FramingError) -> Self {
        match error {
            FramingError::UpgradeWithKey => Self::UpgradeRefused,
            error => Self::BadRequest {
                why: error.to_string().into(),
            },
        }
    }
}

impl Problem {
    /// There is no key in the header `name`, and there has to be one.
    pub fn no_key_in(name: &HeaderName) -> Self {
        Self::KeyMissing {
            expected_in: format!("the header {name}").into(),
        }
    }

    /// The problem's name: the last part of its `type`, and of its page's path.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::OperationInFlight { .. } => "operation-in-flight",
            Self::KeyReused => "key-reused",
            Self::KeyMissing { .. } => "key-missing",
            Self::KeyMalformed(_) => "key-malformed",
            Self::OutcomeUnknown(_) | Self::StepsUnknown { .. } => "outcome-unknown",
            Self::Unfinished { .. } => "operation-unfinished",
            Self::UpstreamUnreachable { .. } => "upstream-unreachable",
            Self::StoreUnavailable { .. } => "store-unavailable",
            Self::BodyTooLarge { .. } => "body-too-large",
            Self::HeadersTooLarge { .. } => "headers-too-large",
            Self::QuotaExceeded { .. } => "quota-exceeded",
            Self::StorageFull { .. } => "storage-full",
            Self::CredentialMissing => "credential-missing",
            Self::RequestTimeout { .. } => "request-timeout",
            Self::BadRequest { .. } => "bad-request",
            Self::RouteNotFound => "route-not-found",
            Self::ShuttingDown { .. } => "shutting-down",
            Self::UpgradeRefused => "upgrade-refused",
            Self::ClaimLost => "claim-lost",
            Self::AlreadySettled(_) => "already-settled",
        }
    }

    /// The status of the answer.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::KeyMissing { .. }
            | Self::KeyMalformed(_)
            | Self::BadRequest { .. }
            | Self::UpgradeRefused => StatusCode::BAD_REQUEST,
            Self::CredentialMissing => StatusCode::UNAUTHORIZED,
            Self::RouteNotFound => StatusCode::NOT_FOUND,
            Self::RequestTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::OperationInFlight { .. } | Self::ClaimLost | Self::AlreadySettled(_) => {
                StatusCode::CONFLICT
            }
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::QuotaExceeded { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::HeadersTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::OutcomeUnknown(UnknownReason::TimedOut) => StatusCode::GATEWAY_TIMEOUT,
            Self::OutcomeUnknown(_)
            | Self::StepsUnknown { .. }
            | Self::UpstreamUnreachable { .. } => StatusCode::BAD_GATEWAY,
            Self::StoreUnavailable { .. } | Self::ShuttingDown { .. } | Self::Unfinished { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::StorageFull { .. } => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    /// Whether the same request with the same key may be worth sending again.
    pub const fn should_retry(&self) -> bool {
        match self {
            Self::OperationInFlight { .. }
            | Self::UpstreamUnreachable { .. }
            | Self::Unfinished { .. }
            | Self::StoreUnavailable { .. }
            | Self::QuotaExceeded { .. }
            | Self::StorageFull { .. }
            | Self::RequestTimeout { .. }
            | Self::ShuttingDown { .. } => true,
            Self::KeyReused
            | Self::KeyMissing { .. }
            | Self::KeyMalformed(_)
            | Self::OutcomeUnknown(_)
            | Self::StepsUnknown { .. }
            | Self::BodyTooLarge { .. }
            | Self::HeadersTooLarge { .. }
            | Self::CredentialMissing
            | Self::BadRequest { .. }
            | Self::RouteNotFound
            | Self::UpgradeRefused
            | Self::ClaimLost
            | Self::AlreadySettled(_) => false,
        }
    }

    /// When to come again, where that is known.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::OperationInFlight { retry_after, .. }
            | Self::Unfinished { retry_after, .. }
            | Self::StoreUnavailable { retry_after }
            | Self::QuotaExceeded { retry_after, .. }
            | Self::ShuttingDown { retry_after } => Some(*retry_after),
            _ => None,
        }
    }

    /// Whether the connection is to be closed after the answer: the rest of the request was not
    /// read, its framing is in doubt, or the gateway is going.
    pub fn closes_connection(&self) -> bool {
        match self {
            Self::KeyMalformed(error) => error.closes_connection(),
            Self::BodyTooLarge { .. }
            | Self::HeadersTooLarge { .. }
            | Self::RequestTimeout { .. }
            | Self::BadRequest { .. }
            | Self::ShuttingDown { .. } => true,
            _ => false,
        }
    }

    /// The problem's page.
    pub fn page(&self) -> &'static ProblemPage {
        problem_pages::page(self.name()).expect("every problem has a page")
    }

    /// What happened this time, with the facts, as it is said at `place`.
    pub fn detail(&self, place: Place) -> Cow<'static, str> {
        if let Some(happened) = place.happened(self) {
            return happened.into();
        }
        match self {
            Self::OperationInFlight { waited: None, .. } => {
                "An attempt with this key is being executed, and this route does not let others \
                 join it."
                    .into()
            }
            Self::OperationInFlight {
                waited: Some(waited),
                ..
            } => format!(
                "An attempt with this key is being executed, and was not finished after {}.",
                span(*waited)
            )
            .into(),
            Self::KeyMissing { .. } if place == Place::Mcp => {
                "This call has to run once, and nothing tells it from another one: it has neither a \
                 key nor a session."
                    .into()
            }
            Self::KeyMissing { expected_in } => {
                format!("This route takes only requests with a key, in {expected_in}.").into()
            }
            Self::KeyMalformed(error) => format!("What was sent as the key: {error}.").into(),
            Self::OutcomeUnknown(reason) => format!(
                "{} may have run, once at most, and nobody can say: {reason}. Nothing further is \
                 run under this key.",
                place.subject()
            )
            .into(),
            Self::StepsUnknown { why, .. } => format!("{why}.").into(),
            Self::Unfinished { why, .. } => {
                format!("{why}. What its steps have done is recorded.").into()
            }
            Self::UpstreamUnreachable { why, .. } if place == Place::Layer => {
                format!("Nothing ran: {why}.").into()
            }
            Self::UpstreamUnreachable { upstream, why } => {
                format!("The upstream {upstream} was not reached: {why}. Nothing was sent.").into()
            }
            Self::BodyTooLarge { limit_name, limit } => {
                format!("The body is larger than {limit_name}, {limit} bytes.").into()
            }
            Self::HeadersTooLarge { limit_name, limit } => {
                format!("The head of the request is over the limit {limit_name}, {limit}.").into()
            }
            Self::QuotaExceeded {
                limit_name, limit, ..
            } => match limit {
                Some(limit) => {
                    format!("The limit {limit_name}, {limit}, is reached. Nothing was sent.").into()
                }
                None => format!("The limit {limit_name} is reached. Nothing was sent.").into(),
            },
            Self::StorageFull { limit_name } => match limit_name {
                Some(name) => format!("The limit {name} is reached. Nothing was sent.").into(),
                None => "The disk of the store is full. Nothing was sent.".into(),
            },
            Self::RequestTimeout { limit_name, limit } => format!(
                "The request did not arrive whole within {limit_name}, {}. Nothing was sent.",
                span(*limit)
            )
            .into(),
            Self::BadRequest { why } => format!("The request is not taken: {why}.").into(),
            Self::AlreadySettled(state) => format!(
                "The operation is {state} already, and what was said of it cannot follow on that. \
                 Nothing was changed."
            )
            .into(),
            Self::KeyReused
            | Self::StoreUnavailable { .. }
            | Self::CredentialMissing
            | Self::RouteNotFound
            | Self::ShuttingDown { .. }
            | Self::UpgradeRefused
            | Self::ClaimLost => self.page().happened.into(),
        }
    }

    /// What to do next, as it is said at `place`.
    pub fn next(&self, place: Place) -> Cow<'static, str> {
        match self {
            Self::StepsUnknown { next, .. } => next.clone(),
            _ => place.next(self).unwrap_or(self.page().next.into()),
        }
    }

    /// All of it that a person needs, in one line.
    fn words(&self, place: Place) -> String {
        let (detail, next) = (self.detail(place), self.next(place));
        format!("{}. {detail} {next}", self.page().title)
    }

    /// The answer: status, headers and the document. The marks are the caller's to write.
    pub fn to_response(&self, context: &ProblemContext<'_>) -> Response<Bytes> {
        let mut document = self.document(context);
        // The official SDKs of OpenAI and Stripe look for what went wrong in here; that of Stripe for Node
        // takes a document without it for a success.
        document["error"] = json!({ "type": self.name(), "message": self.words(context.place) });
        let mut response = Response::new(Bytes::from(document.to_string()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(wait) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        if self.status() == StatusCode::UNAUTHORIZED {
            // RFC 9110 section 15.5.2 wants a challenge with every 401.
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        write_should_retry(headers, self.should_retry());
        response
    }

    /// The status code of gRPC that says the same.
    pub const fn grpc_code(&self) -> u16 {
        match self {
            Self::OutcomeUnknown(_) | Self::StepsUnknown { .. } => 2,
            Self::KeyReused
            | Self::KeyMissing { .. }
            | Self::KeyMalformed(_)
            | Self::BadRequest { .. }
            | Self::UpgradeRefused => 3,
            Self::BodyTooLarge { .. }
            | Self::HeadersTooLarge { .. }
            | Self::QuotaExceeded { .. }
            | Self::StorageFull { .. } => 8,
            Self::ClaimLost | Self::AlreadySettled(_) => 9,
            Self::OperationInFlight { .. } => 10,
            Self::RouteNotFound => 12,
            Self::UpstreamUnreachable { .. }
            | Self::Unfinished { .. }
            | Self::StoreUnavailable { .. }
            | Self::RequestTimeout { .. }
            | Self::ShuttingDown { .. } => 14,
            Self::CredentialMissing => 16,
        }
    }

    /// The answer to a gRPC call: a status alone, in the headers, as the protocol has it for calls that
    /// are refused before they run. The marks are the caller's to write.
    pub fn to_grpc_response(&self, place: Place) -> Response<Bytes> {
        /// What a message must not have in it.
        const ENCODED: &AsciiSet = &CONTROLS.add(b'%');
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(&GRPC_STATUS, HeaderValue::from(self.grpc_code()));
        let (detail, next) = (self.detail(place), self.next(place));
        let message = format!("{}: {detail} {next}", self.name());
        let message = utf8_percent_encode(&message, ENCODED).to_string();
        if let Ok(message) = HeaderValue::from_str(&message) {
            headers.insert(&GRPC_MESSAGE, message);
        }
        if let Some(wait) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        write_should_retry(headers, self.should_retry());
        response
    }

    /// The answer to a message of MCP: an error of JSON-RPC whose `data` is the document. `id` is that of the
    /// request, as JSON; `None` where it is not known.
    ///
    /// Where it is, the status is 200: an error is an answer, and of answers with another status some
    /// clients show nothing but the number, or end the session. A credential that is missing stays 401,
    /// by which clients begin to ask for one. The marks are the caller's to write.
    pub fn to_json_rpc_response(
        &self,
        id: Option<&str>,
        context: &ProblemContext<'_>,
    ) -> Response<Bytes> {
        let context = &of_mcp(context);
        let mut response = self.to_response(context);
        if id.is_some() && self.status() != StatusCode::UNAUTHORIZED {
            *response.status_mut() = StatusCode::OK;
        }
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.map(|_| self.to_json_rpc(id, context).into())
    }

    /// The same error alone, as JSON in one line.
    pub fn to_json_rpc(&self, id: Option<&str>, context: &ProblemContext<'_>) -> String {
        let context = &of_mcp(context);
        let error = json!({
            "code": self.json_rpc_code(),
            "message": self.words(context.place),
            "data": self.document(context),
        });
        // The id goes back as it came.
        format!(
            r#"{{"jsonrpc":"2.0","id":{},"error":{error}}}"#,
            id.unwrap_or("null")
        )
    }

    /// The code of an error of JSON-RPC that says the same, of those that are left to implementations but
    /// for a message that is none.
    const fn json_rpc_code(&self) -> i32 {
        match self {
            Self::BadRequest { .. } => -32600,
            _ => -32010,
        }
    }

    fn document(&self, context: &ProblemContext<'_>) -> Value {
        let page = self.page();
        let base = context.public_url.unwrap_or("");
        let mut document = json!({
            "type": format!("{base}/problems/{}", page.name),
            "title": page.title,
            "status": self.status().as_u16(),
            "detail": self.detail(context.place),
            "money": page.money,
            "next": self.next(context.place),
        });
        if let Some(operation) = context.operation {
            document["operation"] = operation.to_string().into();
        }
        document
    }
}

/// JSON-RPC is spoken by routes of MCP alone.
fn of_mcp<'a>(context: &ProblemContext<'a>) -> ProblemContext<'a> {
    ProblemContext {
        place: Place::Mcp,
        ..*context
    }
}

/// `Retry-After` knows whole seconds only, and 0 would call for a retry at once.
fn whole_seconds(wait: Duration) -> u64 {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    seconds.max(1)
}

/// A span of time in words, to the millisecond.
fn span(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem_pages::PAGES;

    /// One of every kind.
    fn all() -> Vec<Problem> {
        let retry_after = Duration::from_millis(1500);
        vec![
            Problem::OperationInFlight {
                waited: Some(Duration::from_secs(600)),
                retry_after,
            },
            Problem::KeyReused,
            Problem::KeyMissing {
                expected_in: "the header idempotency-key".into(),
            },
            KeyError::List.into(),
            Problem::OutcomeUnknown(UnknownReason::Broke),
            Problem::Unfinished {
                why: "the step mail did not run".into(),
                retry_after,
            },
            Problem::UpstreamUnreachable {
                upstream: "openai".into(),
                why: "connection refused".into(),
            },
            Problem::StoreUnavailable { retry_after },
            Problem::BodyTooLarge {
                limit_name: "limits.request_body",
                limit: 67_108_864,
            },
            Problem::HeadersTooLarge {
                limit_name: "server.max_headers",
                limit: 128,
            },
            Problem::QuotaExceeded {
                limit_name: "limits.tenant_live",
                limit: Some(10_000),
                retry_after,
            },
            Problem::StorageFull {
                limit_name: Some("store.max_bytes"),
            },
            Problem::CredentialMissing,
            Problem::RequestTimeout {
                limit_name: "server.body_timeout",
                limit: Duration::from_secs(60),
            },
            FramingError::NoHost.into(),
            Problem::RouteNotFound,
            Problem::ShuttingDown { retry_after },
            FramingError::UpgradeWithKey.into(),
            Problem::ClaimLost,
            Problem::AlreadySettled(StateName::Completed),
        ]
    }

    fn at(place: Place) -> ProblemContext<'static> {
        ProblemContext {
            place,
            ..ProblemContext::default()
        }
    }

    fn document(problem: &Problem, context: &ProblemContext<'_>) -> serde_json::Value {
        serde_json::from_slice(problem.to_response(context).body()).unwrap()
    }

    #[test]
    fn every_problem_has_a_page_and_every_page_a_problem() {
        let names: Vec<_> = all().iter().map(Problem::name).collect();
        let pages: Vec<_> = PAGES.iter().map(|page| page.name).collect();
        assert_eq!(names, pages);
        for problem in all() {
            let status = problem.status().as_u16();
            assert!(problem.page().statuses.contains(&status), "{problem:?}");
        }
    }

    #[test]
    fn every_document_has_its_members_and_headers() {
        for problem in all() {
            let response = problem.to_response(&ProblemContext::default());
            let headers = response.headers();
            assert_eq!(headers["content-type"], "application/problem+json");
            let retry = if problem.should_retry() {
                "true"
            } else {
                "false"
            };
            assert_eq!(headers["x-should-retry"], retry);
            assert_eq!(headers["stripe-should-retry"], retry);
            let document = document(&problem, &ProblemContext::default());
            assert_eq!(document["type"], format!("/problems/{}", problem.name()));
            assert_eq!(document["status"], problem.status().as_u16());
            for member in ["title", "detail", "money", "next"] {
                let text = document[member].as_str().unwrap();
                assert!(text.len() > 10 && !text.contains("  "), "{member}: {text}");
            }
            assert_eq!(document.get("operation"), None);
            assert_eq!(document["error"]["type"], problem.name());
            let message = document["error"]["message"].as_str().unwrap();
            for member in ["title", "detail", "next"] {
                assert!(message.contains(document[member].as_str().unwrap()));
            }
        }
    }

    #[test]
    fn a_refusal_of_a_grpc_call_is_a_status_with_its_name() {
        for problem in all() {
            let response = problem.to_grpc_response(Place::Layer);
            assert_eq!(
                response.status(),
                StatusCode::OK,
                "the status is in the headers"
            );
            assert!(response.body().is_empty());
            let headers = response.headers();
            assert_eq!(headers["content-type"], "application/grpc");
            assert_eq!(
                headers["grpc-status"],
                problem.grpc_code().to_string().as_str()
            );
            let message = headers["grpc-message"].to_str().unwrap();
            assert!(message.starts_with(problem.name()), "{message}");
            let retry = problem.should_retry().to_string();
            assert_eq!(headers["x-should-retry"], retry.as_str());
            // UNAVAILABLE and ABORTED call for a retry by themselves.
            let calls_for_retry = matches!(problem.grpc_code(), 10 | 14);
            assert!(!calls_for_retry || problem.should_retry(), "{problem:?}");
        }
    }

    #[test]
    fn a_refusal_of_a_json_rpc_request_is_an_error_with_its_id_and_the_document() {
        let context = ProblemContext::default();
        for problem in all() {
            let plain = problem.to_response(&context);
            let known = problem.to_json_rpc_response(Some("\"7\""), &context);
            let status = match problem {
                Problem::CredentialMissing => 401,
                _ => 200,
            };
            assert_eq!(known.status(), status, "{problem:?}");
            assert_eq!(known.headers()["content-type"], "application/json");
            for name in ["x-should-retry", "retry-after", "www-authenticate"] {
                assert_eq!(known.headers().get(name), plain.headers().get(name));
            }
            let error: serde_json::Value = serde_json::from_slice(known.body()).unwrap();
            assert_eq!(
                (&error["jsonrpc"], &error["id"]),
                (&json!("2.0"), &json!("7"))
            );
            let message = error["error"]["message"].as_str().unwrap();
            assert!(message.contains(&*problem.detail(Place::Mcp)), "{message}");
            assert!(message.contains(&*problem.next(Place::Mcp)), "{message}");
            let in_words = problem.to_response(&at(Place::Mcp));
            let mut document: serde_json::Value = serde_json::from_slice(in_words.body()).unwrap();
            // The same once more, for clients that know an error of no other kind.
            document.as_object_mut().unwrap().remove("error").unwrap();
            assert_eq!(error["error"]["data"], document);
            let unknown = problem.to_json_rpc_response(None, &context);
            assert_eq!(unknown.status(), problem.status());
            let error: serde_json::Value = serde_json::from_slice(unknown.body()).unwrap();
            assert_eq!(error["id"], serde_json::Value::Null);
        }
    }

    #[test]
    fn the_context_makes_the_type_absolute_and_names_the_operation() {
        let operation = OperationId::new(1, &[0; 10]);
        let context = ProblemContext {
            public_url: Some("https://gate.example"),
            operation: Some(operation),
            place: Place::Route,
        };
        let document = document(&Problem::KeyReused, &context);
        assert_eq!(document["type"], "https://gate.example/problems/key-reused");
        assert_eq!(document["operation"], operation.to_string());
    }

    /// Nobody is sent to what is not there: a server with the layer has no upstream and no configuration of a
    /// gateway, a worker and a command send no headers.
    #[test]
    fn what_is_said_fits_the_place_that_says_it() {
        let key =
            |problem: &Problem| matches!(problem, Problem::KeyReused | Problem::KeyMalformed(_));
        let elsewhere = |problem: &Problem| {
            let is_of_a_gateway = matches!(
                problem,
                Problem::RouteNotFound | Problem::HeadersTooLarge { .. }
            );
            is_of_a_gateway || matches!(problem, Problem::OutcomeUnknown(_))
        };
        // What a header can be wrong in, besides.
        let malformed = Problem::from(KeyError::Control { position: 1 });
        let others = all()
            .into_iter()
            .filter(|problem| problem.name() != malformed.name());
        for problem in others.chain([malformed.clone()]) {
            let foreign: &[(Place, &[&str])] = match &problem {
                problem if key(problem) => &[
                    (Place::Layer, &["upstream", "gateway"]),
                    (Place::Work, &["header", "upstream", "method"]),
                    (Place::Exec, &["header", "upstream", "method"]),
                    (Place::Mcp, &["Idempotency-Key", "upstream", "method"]),
                ],
                Problem::KeyMissing { .. } => &[(Place::Mcp, &["Idempotency-Key", "This route"])],
                problem if elsewhere(problem) => &[],
                _ => &[(Place::Layer, &["upstream", "gateway", "configuration"])],
            };
            for (place, words) in foreign {
                let said = format!("{} {}", problem.detail(*place), problem.next(*place));
                for word in *words {
                    assert!(!said.contains(word), "{place:?}: {said}");
                }
            }
        }
    }

    #[test]
    fn who_is_told_that_nobody_knows_is_told_how_it_is_settled_there() {
        let problem = Problem::OutcomeUnknown(UnknownReason::OwnerDied);
        for (place, begins, names) in [
            (Place::Route, "The request may", "Find out at the upstream"),
            (Place::Mcp, "The call may", "Find out at the upstream"),
            (Place::Work, "The operation may", "on_unknown: rerun"),
            (Place::Exec, "The command may", "--on-unknown rerun"),
            (
                Place::Layer,
                "The request may",
                "Once::complete or Once::release",
            ),
        ] {
            let (detail, next) = (problem.detail(place), problem.next(place));
            assert!(detail.starts_with(begins), "{detail}");
            assert!(next.contains(names), "{next}");
            assert_eq!(document(&problem, &at(place))["next"], *next);
        }
    }

    #[test]
    fn hostile_027_a_missing_credential_is_asked_for() {
        let response = Problem::CredentialMissing.to_response(&ProblemContext::default());
        assert_eq!(response.status(), 401);
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
    }

    #[test]
    fn retry_after_is_whole_seconds_and_never_zero() {
        for (wait, seconds) in [(0, "1"), (1, "1"), (1000, "1"), (1500, "2")] {
            let problem = Problem::StoreUnavailable {
                retry_after: Duration::from_millis(wait),
            };
            let response = problem.to_response(&ProblemContext::default());
            assert_eq!(response.headers()["retry-after"], seconds);
        }
        let unknown = Problem::OutcomeUnknown(UnknownReason::Broke);
        let response = unknown.to_response(&ProblemContext::default());
        assert!(!response.headers().contains_key("retry-after"));
    }

    #[test]
    fn limits_are_named_with_their_value() {
        for (problem, facts) in all().iter().zip([
            &["10m"][..],
            &[],
            &["idempotency-key"],
            &["list"],
            &["broke"],
            &["mail"],
            &["openai", "refused"],
            &[],
            &["limits.request_body", "67108864"],
            &["server.max_headers", "128"],
            &["limits.tenant_live", "10000"],
            &["store.max_bytes"],
            &[],
            &["server.body_timeout", "1m"],
            &["no Host"],
            &[],
            &[],
            &[],
        ]) {
            for fact in facts {
                let detail = problem.detail(Place::Route);
                assert!(detail.contains(fact), "{detail}");
            }
        }
    }

    #[test]
    fn hostile_064_no_answer_in_time_is_504_and_is_not_to_be_retried() {
        let problem = Problem::OutcomeUnknown(UnknownReason::TimedOut);
        assert_eq!(problem.status(), 504);
        assert!(!problem.should_retry());
        for reason in UnknownReason::ALL
            .iter()
            .filter(|r| **r != UnknownReason::TimedOut)
        {
            assert_eq!(Problem::OutcomeUnknown(*reason).status(), 502);
        }
    }

    #[test]
    fn what_is_unread_or_in_doubt_closes_the_connection() {
        let closing: Vec<_> = all()
            .into_iter()
            .chain([KeyError::Control { position: 1 }.into()])
            .filter(Problem::closes_connection)
            .map(|problem| problem.name())
            .collect();
        assert_eq!(
            closing,
            [
                "body-too-large",
                "headers-too-large",
                "request-timeout",
                "bad-request",
                "shutting-down",
                "key-malformed"
            ]
        );
    }
}
