//! The operations API: whoever executes something outside of the gateway claims it here, and says what
//! became of it.
//!
//! ```text
//! POST /v1/work                   begin: execute, replay, join, in flight; or a problem
//! POST /v1/work/{id}/heartbeat    the claim is believed for another lease
//! POST /v1/work/{id}/complete     the result, which answers whoever comes with the key
//! POST /v1/work/{id}/release      it did not run
//! POST /v1/work/{id}/fail         nobody can say whether it ran
//! GET  /v1/work/{id}              what it is, and what it became: at once, after a wait, or as events
//! ```
//!
//! A worker's operation is an operation as any other, under the same guarantees: `onlyonce_engine` holds
//! them. Here is only what stands between that and JSON.

mod asked;
mod view;
mod waiting;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit};
use axum::http::{Extensions, StatusCode};
use bytes::Bytes;
use onlyonce_core::{
    Concurrent, Fingerprint, Key, Metered, OnUnknown, OperationId, Record, Refusal as Why,
    RequestLine, Scope, State,
};
use onlyonce_engine::{
    ClaimToken, Refused, Request, RoutePolicy, Ticket, Trouble, Work, WorkError,
};
use onlyonce_http::work::{METHOD, ROUTE, result_head};
use onlyonce_http::{Place, Problem};
use onlyonce_ledger::prices::Sale;
use onlyonce_store::Store;
use serde_json::value::RawValue;

pub(crate) use self::asked::WINDOWS;
use self::asked::{
    BeginBody, Begun, CompleteBody, FailBody, HeartbeatBody, MeteredBody, ReleaseBody,
};
pub(super) use self::asked::{window, word};
use self::view::{Decision, WorkView};
pub(super) use self::waiting::wait;
use self::waiting::{Ending, end_of};
use super::access::{May, Working};
use super::answer::Refusal;
use super::desk::Desk;
use super::operations::not_json;
use super::query::{Named, operation_id};

/// The largest body that is read, in bytes: a result or an input, and what stands around it.
const BODY_MAX: usize = 2 << 20;

/// What the bodies of the operations API may have.
pub(super) fn body_limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(BODY_MAX)
}

/// A JSON body, or why there is none.
type Asked<T> = Result<Json<T>, JsonRejection>;

fn body<T>(asked: Asked<T>) -> Result<T, Refusal> {
    match asked {
        Ok(Json(body)) => Ok(body),
        Err(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {BODY_MAX} bytes"),
            "nothing is lost: send a shorter one, or where the rest is",
        )),
        Err(error) => Err(not_json(error)),
    }
}

/// `POST /v1/work`.
pub(super) async fn begin<S: Store>(
    desk: May<S, Working>,
    extensions: Extensions,
    asked: Asked<BeginBody>,
) -> Result<Json<Decision>, Refusal> {
    let asked = body(asked)?.read(&desk)?;
    let policy = policy(&desk, &asked);
    let request = request(&desk, &asked, peer(&extensions))?;
    let waiter = match asked.wait {
        Some(_) => Some(desk.waiter(&request.scope.tenant)?),
        None => None,
    };
    let engine = desk.engine().clone();
    let worker = engine.worker(asked.nonce.as_deref(), asked.lease);
    // Whoever leaves now may have been granted the claim: it is to be there when they ask again.
    let begun = tokio::spawn(async move { engine.begin_work(request, worker, &policy).await });
    let begun = begun.await.map_err(|_| interrupted())?;
    let decision = match begun? {
        Work::Execute(granted) => Decision::execute(&granted),
        Work::Replay(reader) => {
            let end = end_of(reader, &desk).await;
            decided("replay", end)?
        }
        Work::Join(reader) => {
            let end = end_of(reader, &desk).await;
            decided("join", end)?
        }
        Work::Refuse(refused) => refuse(refused)?,
    };
    drop(waiter);
    Ok(Json(decision))
}

pub(super) fn interrupted() -> Refusal {
    Trouble::Unavailable("the attempt was interrupted".into()).into()
}

fn policy<S: Store>(desk: &Desk<S>, asked: &Begun) -> RoutePolicy {
    RoutePolicy {
        decision: onlyonce_core::Policy {
            concurrent: match asked.wait {
                Some(_) => Concurrent::Join,
                None => Concurrent::Reject,
            },
            on_unknown: match asked.reruns {
                true => OnUnknown::Resend,
                false => OnUnknown::Report,
            },
        },
        // A worker says it when it completes.
        window: desk.window_of(ROUTE),
        join_timeout: asked.wait.unwrap_or_default(),
    }
}

fn request<S: Store>(desk: &Desk<S>, asked: &Begun, peer: Box<str>) -> Result<Request, Refusal> {
    Ok(Request {
        scope: Scope {
            tenant: desk.tenant_of_work(asked.tenant.as_deref())?,
            namespace: asked.namespace.clone(),
        },
        key: asked.key.clone(),
        fingerprint: fingerprint(desk, asked),
        line: RequestLine {
            route: ROUTE.into(),
            method: METHOD.into(),
            path: asked.name.clone(),
            trace: None,
        },
        peer,
        asked_model: "".into(),
        sdk_retry_count: None,
        trace: None,
    })
}

/// What makes two begins the same one.
fn fingerprint<S: Store>(desk: &Desk<S>, asked: &Begun) -> Fingerprint {
    let input = asked.input.as_deref().map(RawValue::get);
    onlyonce_http::work::fingerprint(desk.hash_keys(), input.unwrap_or_default().as_bytes())
}

/// Where a request comes from: an address and a port, or empty.
pub(super) fn peer(extensions: &Extensions) -> Box<str> {
    let info = extensions.get::<ConnectInfo<SocketAddr>>();
    info.map_or_else(Box::default, |ConnectInfo(peer)| peer.to_string().into())
}

/// What somebody is told who did not execute.
fn decided(how: &'static str, (end, ticket): (Ending, Ticket)) -> Result<Decision, Refusal> {
    match end {
        Ending::Completed(result) => Ok(Decision::result(how, &ticket, result)),
        Ending::Released => Ok(Decision::without("released", &ticket)),
        Ending::Runs => Ok(Decision::without("in_flight", &ticket)),
        Ending::Unknown(reason) => Err(conflict(&Problem::OutcomeUnknown(reason), Some(&ticket))),
    }
}

/// What stands in the way, of the operation of `ticket`.
fn conflict(problem: &Problem, ticket: Option<&Ticket>) -> Refusal {
    about(
        Refusal::problem(StatusCode::CONFLICT, problem, Place::Work),
        ticket,
    )
}

/// The refusal, of the operation of `ticket`.
pub(super) fn about(refusal: Refusal, ticket: Option<&Ticket>) -> Refusal {
    match ticket {
        Some(ticket) => refusal.about_ticket(ticket),
        None => refusal,
    }
}

fn refuse(refused: Refused) -> Result<Decision, Refusal> {
    let ticket = refused.ticket.as_ref();
    match (refused.refusal, ticket) {
        (Why::KeyReused, _) => Err(Refusal::problem(
            StatusCode::UNPROCESSABLE_ENTITY,
            &Problem::KeyReused,
            Place::Work,
        )),
        (Why::InFlight, Some(ticket)) => Ok(Decision::without("in_flight", ticket)),
        // A claim for it is being written at this moment.
        (Why::InFlight, None) => Ok(Decision::nothing("in_flight")),
        (Why::Unknown(reason), ticket) => Err(conflict(&Problem::OutcomeUnknown(reason), ticket)),
    }
}

/// `POST /v1/work/{id}/heartbeat`.
pub(super) async fn heartbeat<S: Store>(
    desk: May<S, Working>,
    Named(id): Named,
    asked: Asked<HeartbeatBody>,
) -> Result<Json<WorkView>, Refusal> {
    let id = operation_id(&id)?;
    let (token, lease) = body(asked)?.read(&desk)?;
    let engine = desk.engine_for(id, &token).await?;
    let record = engine.renew_work(id, &token, lease).await;
    written(record, id)
}

/// `POST /v1/work/{id}/complete`.
pub(super) async fn complete<S: Store>(
    desk: May<S, Working>,
    Named(id): Named,
    asked: Asked<CompleteBody>,
) -> Result<Json<WorkView>, Refusal> {
    let id = operation_id(&id)?;
    let asked = body(asked)?.read(&desk)?;
    let engine = desk.engine_for(id, &asked.token).await?;
    let metered = metered(
        &desk,
        (id, &asked.token),
        asked.metered,
        onlyonce_core::metered::Source::Provider,
    );
    let metered = metered.await?;
    let result = Bytes::from(asked.result.get().to_owned());
    let (token, window) = (&asked.token, asked.window);
    let record = engine
        .complete_work(id, token, result_head(), result, window, metered)
        .await;
    written(record, id)
}

/// `POST /v1/work/{id}/release`.
pub(super) async fn release<S: Store>(
    desk: May<S, Working>,
    Named(id): Named,
    asked: Asked<ReleaseBody>,
) -> Result<Json<WorkView>, Refusal> {
    let id = operation_id(&id)?;
    let token = body(asked)?.read()?;
    let engine = desk.engine_for(id, &token).await?;
    let record = engine.release_work(id, &token).await;
    written(record, id)
}

/// `POST /v1/work/{id}/fail`.
pub(super) async fn fail<S: Store>(
    desk: May<S, Working>,
    Named(id): Named,
    asked: Asked<FailBody>,
) -> Result<Json<WorkView>, Refusal> {
    let id = operation_id(&id)?;
    let (token, used) = body(asked)?.read()?;
    let engine = desk.engine_for(id, &token).await?;
    let metered = metered(
        &desk,
        (id, &token),
        used,
        onlyonce_core::metered::Source::Partial,
    )
    .await?;
    let record = engine.fail_work(id, &token, metered).await;
    written(record, id)
}

/// The operation `id` as it stands by the worker's word.
fn written(
    record: Result<Arc<Record>, WorkError>,
    id: OperationId,
) -> Result<Json<WorkView>, Refusal> {
    let record = record.map_err(|error| Refusal::from(error).about(id))?;
    Ok(Json(WorkView::of(&record)))
}

/// What a worker says that it used, with what that costs its tenant.
async fn metered<S: Store>(
    desk: &Desk<S>,
    (id, token): (OperationId, &ClaimToken),
    used: Option<MeteredBody>,
    source: onlyonce_core::metered::Source,
) -> Result<Option<Metered>, Refusal> {
    let Some(used) = used else { return Ok(None) };
    let mut metered = used.read(source)?;
    let found = desk.engine().claimed(id, token).await?;
    let Some(stored) = found else {
        return Ok(None);
    };
    let sale = Sale {
        tenant: &stored.record.scope.tenant,
        seller: None,
        per_call: None,
        status: 200,
        at: stored.record.claimed_at,
    };
    desk.meters().prices.price(&mut metered, &sale);
    Ok(Some(metered))
}

/// Whether a worker executes it, or did.
fn is_work(record: &Record) -> bool {
    &*record.request.route == ROUTE && &*record.request.method == METHOD
}

/// The lease unless a worker says one.
fn default_lease<S: Store>(desk: &Desk<S>) -> Duration {
    desk.store_config().lease
}

/// The window unless a worker says one.
fn default_window<S: Store>(desk: &Desk<S>) -> Duration {
    desk.window_of(ROUTE)
}

/// The key of a worker's operation.
fn key(text: &str) -> Result<Key, Refusal> {
    Key::new(text).map_err(|error| {
        let problem = Problem::KeyMalformed(onlyonce_http::KeyError::from(error));
        Refusal::problem(StatusCode::BAD_REQUEST, &problem, Place::Work)
    })
}

/// Whether there is a result to show.
fn has_result(state: &State) -> bool {
    matches!(state, State::Completed(completed) if completed.body_len > 0)
}
