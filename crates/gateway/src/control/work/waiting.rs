//! Waiting for the end of an operation: in one answer, or as events.
//!
//! However many wait for one operation here, the store is asked by one of them (`onlyonce_engine::Watch`).

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use onlyonce_core::{OperationId, StateName, UnknownReason};
use onlyonce_engine::{Frame, Reader, Start, Ticket, Watch};
use onlyonce_store::{Store, Stored};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use super::view::WorkView;
use super::{asked, has_result, is_work};
use crate::control::access::{May, Working};
use crate::control::answer::Refusal;
use crate::control::desk::Desk;
use crate::control::query::{Named, operation_id};
use crate::control::waiters::Waiter;
use crate::shared::{Phase, Phases};

/// How often a stream of events says that it lives.
const COMMENT_EVERY: Duration = Duration::from_secs(15);

/// How the operation that somebody waited for ended.
pub(super) enum Ending {
    /// With this result.
    Completed(Box<RawValue>),
    /// Nothing ran.
    Released,
    /// Nobody can say.
    Unknown(UnknownReason),
    /// It did not, in the time that there was.
    Runs,
}

/// Reads to the end, for no longer than the reader has.
pub(super) async fn end_of<S: Store>(mut reader: Reader<S>, desk: &Desk<S>) -> (Ending, Ticket) {
    let ending = tokio::select! {
        ending = ending(&mut reader) => ending,
        () = stops(desk.phases()) => Ending::Runs,
    };
    (ending, *reader.ticket())
}

async fn ending<S: Store>(reader: &mut Reader<S>) -> Ending {
    match reader.start().await {
        Start::Response { .. } => match whole(reader).await {
            Ok(result) => Ending::Completed(result),
            Err(reason) => Ending::Unknown(reason),
        },
        Start::NotSent(_) => Ending::Released,
        Start::Unknown(reason) => Ending::Unknown(reason),
        Start::Timeout => Ending::Runs,
    }
}

/// The whole body, which is JSON.
async fn whole<S: Store>(reader: &mut Reader<S>) -> Result<Box<RawValue>, UnknownReason> {
    let mut body = BytesMut::new();
    while let Some(frame) = reader.next().await {
        if let Frame::Data(bytes) = frame.map_err(|broken| broken.0)? {
            body.extend_from_slice(&bytes);
        }
    }
    // An operator may have put something else there.
    serde_json::from_slice(&body).map_err(|_| UnknownReason::Unreadable)
}

/// Returns when the gateway goes.
async fn stops(mut phases: Phases) {
    // The sender is gone with the gateway.
    let _ = phases.wait_for(|phase| *phase >= Phase::Draining).await;
}

/// The query of `GET /v1/work/{id}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::control) struct WaitQuery {
    wait: Option<String>,
}

/// `GET /v1/work/{id}`.
pub(in crate::control) async fn wait<S: Store>(
    desk: May<S, Working>,
    Named(id): Named,
    headers: HeaderMap,
    query: Result<Query<WaitQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(WaitQuery { wait }) = query
        .map_err(|error| Refusal::bad_request(error.body_text(), "use wait=30s, or nothing"))?;
    let wait = wait.as_deref().map(|text| asked::span("wait", text));
    let wait = wait.transpose()?.unwrap_or_default();
    let id = operation_id(&id)?;
    let desk = desk.into_desk();
    let stored = look(&desk, id).await?;
    if wants_events(&headers) {
        return events(desk, id, stored);
    }
    let give_up_at = Instant::now() + wait.min(desk.limits().work_wait);
    let stored = match wait.is_zero() {
        true => stored,
        false => {
            let _waiter = desk.waiter(&stored.record.scope.tenant)?;
            let ended = until_end(&desk, id);
            let ended = async {
                tokio::select! {
                    ended = ended => ended,
                    () = stops(desk.phases()) => Ok(()),
                }
            };
            if let Ok(ended) = timeout_at(give_up_at, ended).await {
                ended?;
            }
            look(&desk, id).await?
        }
    };
    Ok(Json(shown(&desk, &stored).await?).into_response())
}

fn wants_events(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/event-stream"))
}

/// The operation as it stands.
async fn look<S: Store>(desk: &Desk<S>, id: OperationId) -> Result<Stored, Refusal> {
    let found = desk.record(id).await?;
    match is_work(&found.record) {
        true => Ok(found),
        false => Err(Refusal::no_such_operation(&id.to_string())),
    }
}

/// Returns when it does not run any more. (Nothing of a worker's answer is told before its end.)
async fn until_end<S: Store>(desk: &Desk<S>, id: OperationId) -> Result<(), Refusal> {
    if let Some(Watch::Running(_, mut reader)) = desk.engine().watch(id).await? {
        reader.start().await;
    }
    Ok(())
}

/// It as `GET /v1/work/{id}` shows it.
async fn shown<S: Store>(desk: &Desk<S>, stored: &Stored) -> Result<WorkView, Refusal> {
    let record = &*stored.record;
    if !has_result(&record.state) {
        return Ok(WorkView::of(record));
    }
    let reader = desk.engine().recording(record.id).await?;
    let result = match reader {
        Some(mut reader) => whole(&mut reader).await.ok(),
        None => None,
    };
    // What cannot be read counts as unknown from now on, and the next look says so.
    Ok(match result {
        Some(result) => WorkView::with_result(record, result),
        None => WorkView::of(record),
    })
}

/// The same as a stream of events: what it is now, what it becomes, and the result at the end.
fn events<S: Store>(desk: Desk<S>, id: OperationId, stored: Stored) -> Result<Response, Refusal> {
    let told = Told {
        _waiter: desk.waiter(&stored.record.scope.tenant)?,
        desk,
        id,
        next: Next::State(stored),
    };
    let events = stream::unfold(told, async |mut told| {
        let event = told.event().await?;
        Some((Ok::<_, Infallible>(event), told))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("text/event-stream");
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// One who is told of an operation by events.
struct Told<S: Store> {
    desk: Desk<S>,
    id: OperationId,
    next: Next<S>,
    _waiter: Waiter,
}

enum Next<S: Store> {
    /// It stands so.
    State(Stored),
    /// It runs, or did at the last look.
    Watch,
    /// It runs; this tells when that ends.
    Wait(Reader<S>),
    /// It is completed.
    Result(Stored),
    End,
}

impl<S: Store> Told<S> {
    async fn event(&mut self) -> Option<Bytes> {
        loop {
            match std::mem::replace(&mut self.next, Next::End) {
                Next::State(stored) => {
                    let state = &stored.record.state;
                    let event = event("state", &WorkView::of(&stored.record));
                    self.next = match state.name() {
                        StateName::InFlight => Next::Watch,
                        StateName::Completed => Next::Result(stored),
                        StateName::Unknown | StateName::Released => Next::End,
                    };
                    return event;
                }
                Next::Watch => {
                    // Where the store does not answer, who follows asks again.
                    self.next = match self.desk.engine().watch(self.id).await.ok()?? {
                        Watch::Running(_, reader) => Next::Wait(reader),
                        Watch::Settled(stored) => Next::State(stored),
                    };
                }
                Next::Wait(mut reader) => {
                    let give_up_at = Instant::now() + COMMENT_EVERY;
                    let waited = tokio::select! {
                        waited = timeout_at(give_up_at, reader.start()) => waited,
                        () = stops(self.desk.phases()) => return None,
                    };
                    if waited.is_err() {
                        self.next = Next::Wait(reader);
                        return Some(Bytes::from_static(b": it runs\n\n"));
                    }
                    let stored = look(&self.desk, self.id).await.ok()?;
                    self.next = Next::State(stored);
                }
                Next::Result(stored) => {
                    let view = shown(&self.desk, &stored).await.ok()?;
                    return event("result", &view);
                }
                Next::End => return None,
            }
        }
    }
}

/// One event. What has several lines is sent in as many.
fn event(name: &str, view: &impl Serialize) -> Option<Bytes> {
    let json = serde_json::to_string(view).ok()?;
    let mut text = format!("event: {name}\n");
    for line in json.split(['\n', '\r']).filter(|line| !line.is_empty()) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "data: {line}");
    }
    text.push('\n');
    Some(text.into())
}
