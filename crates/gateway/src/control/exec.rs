//! A command that runs where its caller is, once at most.
//!
//! ```text
//! POST /v1/exec/claim          may it run? a claim, or the run that there was, or a refusal
//! POST /v1/exec/{id}/output    under that claim: what the command writes, as it comes
//! ```
//!
//! The caller starts the command once it holds the claim, which is durable then (I2) and a worker's: it
//! belongs to no process. Nothing less is the right to run: an interim response, for one, comes from whatever
//! stands between. The gateway that the output is sent to takes the claim over and records it as it comes, so
//! that whoever comes meanwhile joins. Output that breaks off is an outcome that nobody knows.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE as CONTENT_TYPE_HEADER};
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use onlyonce_core::{
    Concurrent, Head, HeaderBlock, OnUnknown, OperationId, Refusal as Why, RequestLine, Scope,
    UnknownReason,
};
use onlyonce_engine::{
    ClaimToken, Execution, Granted, Kind, PushError, Reader, Refused, Request, RoutePolicy, Start,
    Ticket, Unsettled, Work,
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
use super::query::{Named, operation_id};
use super::recording::RecordingBody;
use super::work::{self, about, peer, word};
use crate::exec::frames::{CONTENT_TYPE, Frame, Frames};

const ROUTE: &str = "exec";
const METHOD: &str = "EXEC";

/// A caller says at least every ten seconds that its command runs. One that is silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a claim is believed whose output is not there yet. The caller renews it as often as it says that
/// the command runs: something between may hold the output back.
const LEASE: Duration = SILENCE_MAX;
/// How long a joiner waits until it is told that the command has started.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

/// The claim under which output comes.
static CLAIM: HeaderName = HeaderName::from_static("onlyonce-claim");

/// The query of `POST /v1/exec/claim`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClaimQuery {
    /// A hash of the command and its arguments, in hexadecimal.
    command: String,
    /// Drawn at random for this run: who asks twice with it is granted one claim, and finds it in the answer.
    nonce: String,
    name: Option<String>,
    tenant: Option<String>,
    namespace: Option<String>,
    window: Option<String>,
    on_unknown: Option<String>,
}

/// The query of `POST /v1/exec/{id}/output`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OutputQuery {
    window: Option<String>,
}

/// `POST /v1/exec/claim`.
pub(super) async fn claim<S: Store>(
    desk: May<S, Working>,
    query: Result<Query<ClaimQuery>, QueryRejection>,
    headers: HeaderMap,
    extensions: Extensions,
) -> Result<Response, Refusal> {
    let Query(query) = query.map_err(|error| not_ours(error.body_text()))?;
    let policy = policy(&desk, &query)?;
    let nonce = word("nonce", Some(query.nonce.clone()))?.unwrap_or_default();
    let request = request(&desk, query, &headers, &extensions)?;
    let engine = desk.engine().clone();
    let worker = engine.worker(Some(&nonce), LEASE);
    // Whoever leaves now may have been granted the claim: it is to be there when they ask again.
    let begun = tokio::spawn(async move { engine.begin_work(request, worker, &policy).await });
    match begun.await.map_err(|_| work::interrupted())?? {
        Work::Execute(granted) => Ok(granted_to(&granted, &nonce)),
        Work::Replay(reader) => told(reader, Status::Replayed).await,
        Work::Join(reader) => told(reader, Status::Joined).await,
        Work::Refuse(Refused { refusal, ticket }) => Err(match refusal {
            Why::KeyReused => refused(StatusCode::UNPROCESSABLE_ENTITY, &Problem::KeyReused),
            Why::InFlight => conflict(&in_flight(), ticket.as_ref()),
            Why::Unknown(reason) => conflict(&Problem::OutcomeUnknown(reason), ticket.as_ref()),
        }),
    }
}

/// The right to run, for who has drawn `nonce`: an answer to somebody else has another one.
fn granted_to(granted: &Granted, nonce: &str) -> Response {
    let answer = json!({
        "operation": granted.id.to_string(),
        "claim": granted.token.to_string(),
        "nonce": nonce,
    });
    let mut response = Json(answer).into_response();
    let never = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, never);
    response
}

/// `POST /v1/exec/{id}/output`.
pub(super) async fn output<S: Store>(
    desk: May<S, Working>,
    Named(id): Named,
    query: Result<Query<OutputQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let id = operation_id(&id)?;
    let Query(query) = query.map_err(|error| not_ours(error.body_text()))?;
    let kind = headers.get(CONTENT_TYPE_HEADER);
    if kind.is_none_or(|kind| kind != CONTENT_TYPE) {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("the body is not {CONTENT_TYPE}"),
            "run `onlyonce exec`, which sends that",
        ));
    }
    let token = headers.get(&CLAIM).and_then(|claim| claim.to_str().ok());
    let token = token.and_then(|claim| claim.parse().ok());
    let token: ClaimToken = token.ok_or_else(|| not_ours("there is no claim".to_owned()))?;
    let window = window(&desk, query.window.as_deref())?;
    let engine = desk.engine_for(id, &token).await?;
    let execution = engine.take_over(id, &token, window).await;
    let execution = execution.map_err(|error| Refusal::from(error).about(id))?;
    // A caller that leaves must be found out by its body, and not end this halfway.
    let recorded = tokio::spawn(record(execution, body)).await;
    let recorded = recorded.unwrap_or(Recorded::Unknown(UnknownReason::NotRecorded));
    recorded.answer()
}

/// `POST /v1/exec`, as it was: who asks so takes `100 Continue` for the claim, and does not get it.
pub(super) async fn outdated<S: Store>(_: May<S, Working>) -> Refusal {
    Refusal::new(
        StatusCode::GONE,
        "this `onlyonce exec` is older than the gateway and asks for the claim in a way that is not \
         safe",
        "use the one of the gateway's version",
    )
}

fn not_ours(what: String) -> Refusal {
    Refusal::bad_request(what, "send what `onlyonce exec` sends")
}

fn window<S: Store>(desk: &Desk<S>, asked: Option<&str>) -> Result<Duration, Refusal> {
    asked.map_or_else(
        || Ok(desk.window_of(ROUTE)),
        |text| work::window("window", text),
    )
}

fn policy<S: Store>(desk: &Desk<S>, query: &ClaimQuery) -> Result<RoutePolicy, Refusal> {
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
    let window = window(desk, query.window.as_deref())?;
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
    query: ClaimQuery,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Result<Request, Refusal> {
    let header = HeaderName::from_static("idempotency-key");
    let bad = |problem: &Problem| refused(StatusCode::BAD_REQUEST, problem);
    let key = key_of(headers, std::slice::from_ref(&header)).map_err(|error| bad(&error.into()))?;
    let key = key.ok_or_else(|| bad(&Problem::no_key_in(&header)))?;
    let is_hash = query.command.len() == 64 && query.command.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hash {
        return Err(not_ours("command is no hash of a command".to_owned()));
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
        asked_model: "".into(),
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
    Unknown(UnknownReason),
    OverLimit(u64),
}

impl Recorded {
    fn answer(self) -> Result<Response, Refusal> {
        let operation = match self {
            Self::Completed(operation) => operation,
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
        Ok(marked(answer.into_response(), Status::Executed))
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
            if !has_started {
                has_started = true;
                if let Err(error) = execution.head(head(), Kind::Executed).await {
                    return error.into();
                }
            }
            match frame {
                Frame::Runs => {}
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
