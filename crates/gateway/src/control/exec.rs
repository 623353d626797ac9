//! `POST /v1/exec`: a command that runs where its caller is, once at most.
//!
//! The caller sends no body before it is told to (`Expect: 100-continue`), and it is told so by the first
//! look at its body: once the claim is durable (I2). What the command writes is the body from then on,
//! and is recorded as it comes, so that whoever comes meanwhile joins. A body that breaks off is an
//! outcome that nobody knows.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::header::CONTENT_TYPE as CONTENT_TYPE_HEADER;
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use onlyonce_core::{
    Concurrent, Head, HeaderBlock, OnUnknown, OperationId, Refusal as Why, ReleaseReason,
    RequestLine, Scope, UnknownReason,
};
use onlyonce_engine::{
    Begin, Execution, Kind, PushError, Reader, Refused, Request, RoutePolicy, Start, Ticket,
    Unsettled,
};
use onlyonce_http::work::fingerprint_of;
use onlyonce_http::{FingerprintRules, Place, Problem, Status, key_of};
use onlyonce_store::Store;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::access::{May, Working};
use super::answer::Refusal;
use super::desk::Desk;
use super::recording::RecordingBody;
use super::work::{self, about, peer, word};
use crate::exec::frames::{CONTENT_TYPE, Frame, Frames};

const ROUTE: &str = "exec";
const METHOD: &str = "EXEC";

/// A caller says at least every ten seconds that its command runs. One that is silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a joiner waits until it is told that the command has started.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// The query of `POST /v1/exec`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExecQuery {
    /// A hash of the command and its arguments, in hexadecimal.
    command: String,
    name: Option<String>,
    tenant: Option<String>,
    namespace: Option<String>,
    window: Option<String>,
    on_unknown: Option<String>,
}

/// `POST /v1/exec`.
pub(super) async fn run<S: Store>(
    desk: May<S, Working>,
    query: Result<Query<ExecQuery>, QueryRejection>,
    headers: HeaderMap,
    extensions: Extensions,
    body: Body,
) -> Result<Response, Refusal> {
    let Query(query) = query.map_err(|error| {
        let next = "send what `onlyonce exec` sends";
        Refusal::bad_request(error.body_text(), next)
    })?;
    if headers
        .get(CONTENT_TYPE_HEADER)
        .is_none_or(|kind| kind != CONTENT_TYPE)
    {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("the body is not {CONTENT_TYPE}"),
            "run `onlyonce exec`, which sends that",
        ));
    }
    let policy = policy(&desk, &query)?;
    let request = request(&desk, query, &headers, &extensions)?;
    let begun = desk.engine().begin(request, &policy).await?;
    match begun {
        Begin::Execute(execution, _) => {
            // A caller that leaves must be found out by its body, and not end this halfway.
            let recorded = tokio::spawn(record(execution, body)).await;
            let recorded = recorded.unwrap_or(Recorded::Unknown(UnknownReason::NotRecorded));
            recorded.answer()
        }
        Begin::Replay(reader) => told(reader, Status::Replayed).await,
        Begin::Join(reader) => told(reader, Status::Joined).await,
        Begin::Refuse(Refused { refusal, ticket }) => Err(match refusal {
            Why::KeyReused => refused(StatusCode::UNPROCESSABLE_ENTITY, &Problem::KeyReused),
            Why::InFlight => conflict(&in_flight(), ticket.as_ref()),
            Why::Unknown(reason) => conflict(&Problem::OutcomeUnknown(reason), ticket.as_ref()),
        }),
    }
}

fn policy<S: Store>(desk: &Desk<S>, query: &ExecQuery) -> Result<RoutePolicy, Refusal> {
    let on_unknown = match query.on_unknown.as_deref() {
        None | Some("report") => OnUnknown::Report,
        Some("rerun") => OnUnknown::Resend,
        Some(other) => {
            return Err(Refusal::bad_request(
                format!("on_unknown is {other}"),
                "use report or rerun",
            ));
        }
    };
    let window = match &query.window {
        Some(text) => work::window("window", text)?,
        None => desk.window_of(ROUTE),
    };
    Ok(RoutePolicy {
        decision: onlyonce_core::Policy {
            concurrent: Concurrent::Join,
            on_unknown,
        },
        window,
        join_timeout: JOIN_TIMEOUT,
    })
}

fn request<S: Store>(
    desk: &Desk<S>,
    query: ExecQuery,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Result<Request, Refusal> {
    let header = HeaderName::from_static("idempotency-key");
    let bad = |problem: &Problem| refused(StatusCode::BAD_REQUEST, problem);
    let key = key_of(headers, std::slice::from_ref(&header)).map_err(|error| bad(&error.into()))?;
    let key = key.ok_or_else(|| bad(&Problem::no_key_in(&header)))?;
    let is_hash = query.command.len() == 64 && query.command.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hash {
        return Err(Refusal::bad_request(
            "command is no hash of a command",
            "send what `onlyonce exec` sends",
        ));
    }
    let tenant = word("tenant", query.tenant)?;
    Ok(Request {
        scope: Scope {
            tenant: desk.tenant_of_work(tenant.as_deref())?,
            namespace: word("namespace", query.namespace)?.unwrap_or_else(|| ROUTE.into()),
        },
        key,
        fingerprint: fingerprint_of(
            desk.hash_keys(),
            (ROUTE, METHOD, "/v1/exec"),
            &HeaderMap::new(),
            &FingerprintRules::default(),
            query.command.as_bytes(),
        ),
        line: RequestLine {
            route: ROUTE.into(),
            method: METHOD.into(),
            path: word("name", query.name)?.unwrap_or_else(|| ROUTE.into()),
            trace: None,
        },
        peer: peer(extensions),
        sdk_retry_count: None,
        trace: None,
    })
}

fn refused(status: StatusCode, problem: &Problem) -> Refusal {
    Refusal::problem(status, problem, Place::Exec)
}

fn conflict(problem: &Problem, ticket: Option<&Ticket>) -> Refusal {
    about(refused(StatusCode::CONFLICT, problem), ticket)
}

fn in_flight() -> Problem {
    Problem::OperationInFlight {
        waited: Some(JOIN_TIMEOUT),
        retry_after: Duration::from_secs(1),
    }
}

/// What became of a run.
enum Recorded {
    Completed(OperationId),
    Released(OperationId),
    Unknown(UnknownReason),
    OverLimit(u64),
}

impl Recorded {
    fn answer(self) -> Result<Response, Refusal> {
        let (operation, status) = match self {
            Self::Completed(operation) => (operation, Status::Executed),
            Self::Released(operation) => (operation, Status::Released),
            Self::Unknown(reason) => {
                let problem = Problem::OutcomeUnknown(reason);
                return Err(refused(StatusCode::CONFLICT, &problem));
            }
            Self::OverLimit(limit) => {
                return Err(Refusal::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the command wrote more than limits.response_body, {limit} bytes"),
                    "its outcome is unknown to others: settle it by hand, and have it write less",
                ));
            }
        };
        let answer = Json(json!({ "operation": operation.to_string() }));
        Ok(marked(answer.into_response(), status))
    }
}

fn marked(mut response: Response, status: Status) -> Response {
    let headers = response.headers_mut();
    let name = HeaderName::from_static("onlyonce-status");
    headers.insert(name, HeaderValue::from_static(status.as_str()));
    response
}

/// Records the run that comes as `body`, to its end.
async fn record<S: Store>(mut execution: Execution<S>, mut body: Body) -> Recorded {
    let id = execution.id();
    let end = recorded(&mut execution, &mut body).await;
    let settled = match end {
        End::Exit(code) => {
            // The end is told to nobody before it is durable: a joiner goes by the end of the stream (I3).
            match execution.push(Frame::Exit(code).encode()).await {
                Ok(()) => execution.complete(HeaderBlock::default()).await,
                Err(error) => return lost(execution, &error).await,
            }
        }
        End::NotStarted => match execution.release(ReleaseReason::Worker).await {
            Ok(()) => return Recorded::Released(id),
            Err(error) => Err(error),
        },
        End::Broken(reason) => {
            // What the store did not take is left to upkeep, and was logged.
            let _ = execution.lose(reason).await;
            return Recorded::Unknown(reason);
        }
        End::NotPushed(error) => {
            let recorded = lost(execution, &error).await;
            // The command goes on, and its caller is told at its end: an answer in the middle of what it
            // sends might not arrive.
            while let Ok(Some(Ok(_))) = timeout(SILENCE_MAX, body.frame()).await {}
            return recorded;
        }
    };
    match settled {
        Ok(()) => Recorded::Completed(id),
        Err(Unsettled::Fenced) => Recorded::Unknown(UnknownReason::LeasePassed),
        Err(_) => Recorded::Unknown(UnknownReason::NotRecorded),
    }
}

async fn lost<S: Store>(execution: Execution<S>, error: &PushError) -> Recorded {
    let (reason, recorded) = match error {
        PushError::OverLimit { limit } => (UnknownReason::OverLimit, Recorded::OverLimit(*limit)),
        PushError::Fenced => (
            UnknownReason::LeasePassed,
            Recorded::Unknown(UnknownReason::LeasePassed),
        ),
        PushError::NotRecorded(_) => (
            UnknownReason::NotRecorded,
            Recorded::Unknown(UnknownReason::NotRecorded),
        ),
    };
    let _ = execution.lose(reason).await;
    recorded
}

/// How what came of a run ended.
enum End {
    Exit(u8),
    NotStarted,
    Broken(UnknownReason),
    NotPushed(PushError),
}

impl From<PushError> for End {
    fn from(error: PushError) -> Self {
        Self::NotPushed(error)
    }
}

/// Records what comes, the exit code aside.
async fn recorded<S: Store>(execution: &mut Execution<S>, body: &mut Body) -> End {
    let mut frames = Frames::default();
    let mut has_started = false;
    let mut exit = None;
    loop {
        let bytes = match timeout(SILENCE_MAX, body.frame()).await {
            Err(_) => return End::Broken(UnknownReason::TimedOut),
            Ok(Some(Err(_))) => return End::Broken(UnknownReason::WorkerFailed),
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            // Clean, and whole only after an exit.
            Ok(None) => {
                return match exit {
                    Some(code) if frames.is_empty() => End::Exit(code),
                    _ => End::Broken(UnknownReason::WorkerFailed),
                };
            }
        };
        frames.feed(&bytes);
        loop {
            let frame = match frames.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => return End::Broken(UnknownReason::WorkerFailed),
            };
            if exit.is_some() {
                return End::Broken(UnknownReason::WorkerFailed);
            }
            if let Frame::NotStarted(_) = frame {
                return match has_started {
                    true => End::Broken(UnknownReason::WorkerFailed),
                    false => End::NotStarted,
                };
            }
            if !has_started {
                has_started = true;
                if let Err(error) = execution.head(head(), Kind::Executed).await {
                    return error.into();
                }
            }
            match frame {
                Frame::Runs | Frame::NotStarted(_) => {}
                Frame::Exit(code) => exit = Some(code),
                Frame::Stdout(_) | Frame::Stderr(_) => {
                    if let Err(error) = execution.push(frame.encode()).await {
                        return error.into();
                    }
                }
            }
        }
    }
}

fn head() -> Head {
    let kind: [(&[u8], &[u8]); 1] = [(b"content-type", CONTENT_TYPE.as_bytes())];
    Head {
        status: 200,
        headers: HeaderBlock::pack(kind).unwrap_or_default(),
    }
}

/// The run that was recorded, or is being recorded.
async fn told<S: Store>(mut reader: Reader<S>, status: Status) -> Result<Response, Refusal> {
    let ticket = *reader.ticket();
    match reader.start().await {
        Start::Response { .. } => {}
        Start::Timeout => return Err(conflict(&in_flight(), Some(&ticket))),
        Start::Unknown(reason) => {
            return Err(conflict(&Problem::OutcomeUnknown(reason), Some(&ticket)));
        }
        Start::NotSent(_) => {
            return Err(Refusal::new(
                StatusCode::CONFLICT,
                "the run that this one joined could not be started, so nothing ran",
                "run it again: the key is free",
            )
            .about(ticket.id));
        }
    }
    let mut response = Response::new(Body::new(RecordingBody { reader }));
    let kind = HeaderValue::from_static(CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE_HEADER, kind);
    Ok(marked(response, status))
}
